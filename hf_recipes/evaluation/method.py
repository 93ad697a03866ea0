"""What all ways of evaluating a model on a file have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_recipes.models.inference.compute import Compute, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_recipes.evaluation.registry import EvaluationArguments
    from hf_recipes.models.inference.decoding import Decoding
    from hf_recipes.rewards.weighted_sum import Rewards

Record = dict[str, Any]


@dataclass
class Outcome:
    """Records and metrics of one model by evaluation."""

    records: dict[str, list[Record]]
    metrics: dict[str, dict[str, float]]

    @property
    def flat(self) -> dict[str, float]:
        return {f"{name}_{key}": value for name, found in self.metrics.items() for key, value in found.items()}


@dataclass(frozen=True)
class EvalContext:
    """What a method is made with, beside a file.

    Attributes:
        max_length: tokens that the model was made for.
        rewards: what generated answers are worth, beside the methods' scores.
    """

    arguments: "EvaluationArguments"
    tokenizer: "PreTrainedTokenizerBase"
    decoding: "Decoding"
    max_length: int | None = None
    max_drop_ratio: float = 0.01
    cache_dir: str | None = None
    rewards: "Rewards | None" = None


class Method(Protocol):
    """One way to evaluate a model on the rows of one file.

    It is built from rows and tokenizer before any model is loaded, and raises `UserError` then for rows that it cannot
    use, with file and line. Its work comes in units (a row, a pair, a window of a long text), each of which takes part
    in exactly one batch, so that processes with as many units run as many forward passes.

    Attributes:
        forms: of rows that it can be used on (`registry.form_of`), those that it is made for first, each with the names
            by which --eval_methods asks for it.
        suffix: of the names of its metrics where a file has several methods.
        note: what its figures count, in words.
        scores_reward_models: whether it is of a reward model, too.
        change_picture: name of the picture, by `draw`, of a training's first evaluation and its last.
    """

    name: ClassVar[str]
    forms: ClassVar[dict[str, tuple[str, ...]]]
    suffix: str
    note: str | None = None
    scores_reward_models: bool = False
    change_picture: str | None = None

    @classmethod
    def from_file(cls, path: str, form: str, names: Sequence[str] | None, context: EvalContext) -> "Method":
        """The method on the rows of a file of a form; `names` are those that were asked for, if any."""
        ...

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

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome]) -> list[Path]:
        """Pictures, in `folder`, of the evaluation called `name` of one or two models; their paths."""
        return []


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
