"""What all ways of evaluating a model on a file have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hf_recipes.models.inference.compute import Compute, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Record = dict[str, Any]


class Method(Protocol):
    """One way to evaluate a model on the rows of one file.

    It is built from rows and tokenizer before any model is loaded, and raises `UserError` then for rows that it cannot
    use, with file and line. Its work comes in units (a row, a pair, a window of a long text), each of which takes part
    in exactly one batch, so that processes with as many units run as many forward passes.
    """

    def __len__(self) -> int:
        """Number of units."""
        ...

    def compute(self, model: "PreTrainedModel", units: Sequence[int], how: Compute) -> list[Record]:
        """One record (plain values that json takes) for each of `units`, in their order.

        The model's mode, settings and cache use are as before afterwards, and the random state is untouched.
        """
        ...

    def largest_pass(self, batch_size: int) -> ForwardPass:
        """What takes the most memory of `compute` with so many sequences a batch, known before any model is loaded."""
        ...

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """The metrics of the records of all units, in their order."""
        ...

    def directions(self) -> dict[str, bool | None]:
        """Of the metrics that `summarise` gives, by which a model can be chosen: whether larger is better.

        None where neither is. A name stands for its parts too (``accuracy`` for ``accuracy/<source>``).
        """
        ...

    def values(self, records: Sequence[Record]) -> dict[str, list[float | None]]:
        """The metrics that are means over the records, as one value for each (None where it has none); the first is the
        most telling.

        Larger is better. Metrics that no single record has are left out.
        """
        ...


def run_method(
    method: Method, model: "PreTrainedModel", how: Compute, rank: int = 0, world: int = 1
) -> tuple[list[Record], dict[str, float]]:
    """All records of `method`, each computed by one of `world` processes, and their metrics; the same on all.

    Each process computes as many units, the last ones twice where they do not come out even, because all must take
    part in each forward pass where weights are parted over them.
    """
    each = -(-len(method) // world)
    own = [min(rank + world * turn, len(method) - 1) for turn in range(each)]
    records = method.compute(model, own, how)
    if world > 1:
        from accelerate.utils import gather_object

        found = dict(gather_object(list(zip(own, records, strict=True))))
        records = [found[unit] for unit in range(len(method))]
    return records, method.summarise(records)


def versions() -> dict[str, str]:
    """Of what decides a figure."""
    import torch
    import transformers

    from hf_recipes import __version__

    return {"hf_recipes": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def worst_first(method: Method, outcomes: Sequence[list[Record]]) -> list[tuple[float | None, list[Record]]]:
    """Rows of records, one of each model, with the first model's value; the worst first where there are values."""
    values = method.values(outcomes[0])
    first = next(iter(values.values()), [None] * len(outcomes[0]))
    rows = list(zip(first, map(list, zip(*outcomes, strict=True)), strict=True))
    return sorted(rows, key=lambda row: (row[0] is None, row[0] or 0.0))


@dataclass
class Outcome:
    """Records and metrics of one model by evaluation."""

    records: dict[str, list[Record]]
    metrics: dict[str, dict[str, float]]

    @property
    def flat(self) -> dict[str, float]:
        return {f"{name}_{key}": value for name, found in self.metrics.items() for key, value in found.items()}
