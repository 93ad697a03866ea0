"""Values and names of columns, and of the keys of objects in them."""

import ast
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any


def is_empty(value: Any) -> bool:
    return value is None or value == [] or value != value or (isinstance(value, str) and not value.strip())


def parsed(value: Any) -> Any:
    """The value of JSON text, or of the text of a Python literal that pandas writes for lists; else `value`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    if not value.lstrip().startswith(("[{'", "['", "[[", "{'")):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


@lru_cache(4096)
def keys_of(name: Any) -> tuple[str, str]:
    """A column's name as the tables of names write it: ``systemPrompt`` is ``system_prompt``."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", str(name)).lower(), str(name).lower()


def by_key(names: Iterable[Any]) -> dict[str, Any]:
    """Each of `names` by its `keys_of`."""
    return {key: name for name in names for key in keys_of(name)}
