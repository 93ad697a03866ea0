"""Limits of numbers, as annotations of a dataclass's fields."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class at:
    """Limits of a number, as in ``Annotated[int, at(ge=1)]``: at least, more than, at most, below."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    text: str | None = None  # the expected values in words, in place of the limits; {} is the value

    def __contains__(self, value: float) -> bool:
        bounds = ((operator.ge, self.ge), (operator.gt, self.gt), (operator.le, self.le), (operator.lt, self.lt))
        return all(holds(value, bound) for holds, bound in bounds if bound is not None)

    def __str__(self) -> str:
        lowest = self.gt if self.ge is None else self.ge
        if self.text or (self.le is None and self.lt is None):
            return self.text or f"{'more than' if self.ge is None else 'at least'} {lowest}"
        return f"{lowest} to {f'below {self.lt}' if self.le is None else self.le}"


PositiveInt = Annotated[int, at(ge=1)]
NonNegativeInt = Annotated[int, at(ge=0)]
NonNegativeFloat = Annotated[float, at(ge=0)]
PositiveFloat = Annotated[float, at(gt=0)]
Share = Annotated[float, at(ge=0, le=1, text="a share from 0 to 1")]


@cache
def limits_of(kind: type) -> dict[str, at]:
    """The limits of a dataclass's fields: their annotations, and what `limits` says of inherited ones."""
    inherited = {}
    for base in reversed(kind.__mro__):
        inherited |= vars(base).get("limits", {})
    return inherited | {
        name: part.__metadata__[0]
        for name, hint in get_type_hints(kind, include_extras=True).items()
        for part in (hint, *get_args(hint))  # the arguments of PositiveInt | None
        if get_origin(part) is Annotated
    }


def check_limits(arguments: Any) -> None:
    """Raise ValueError for a number outside the limits of its field."""
    check_numbers(vars(arguments), limits_of(type(arguments)))


def check_numbers(values: Mapping[str, Any], limits: Mapping[str, at]) -> None:
    for name, limit in limits.items():
        value = values[name]
        if value is not None and value not in limit:
            text = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"--{name} {text}: expected {str(limit).format(text)}")
