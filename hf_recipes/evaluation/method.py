"""What all ways of evaluating a model on a file have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Record = dict[str, Any]


@dataclass
class Compute:
    """How a method may use the machine.

    Args:
        batch_size: sequences in a forward pass.
        before_batch: called before each batch; may raise to end the evaluation.
        synced: weights are parted over processes (ZeRO's stage 3, FSDP), so that all must run as many forward passes.
    """

    batch_size: int = 8
    before_batch: Callable[[], None] = lambda: None
    synced: bool = False


@dataclass(frozen=True)
class ForwardPass:
    """The largest forward pass of an evaluation: `rows` × `length` tokens, and how many each row is continued by.

    `new_tokens` is None where the tokens are scored alone, without a cache.
    """

    rows: int
    length: int
    new_tokens: int | None = None


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
