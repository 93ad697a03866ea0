"""The interface of all methods that evaluate a model on the rows of a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hf_recipes.core.language import Language
from hf_recipes.evaluation.run_record import EvaluatedRows
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_recipes.evaluation.registry import EvaluationArguments
    from hf_recipes.models.inference.decoding import Decoding
    from hf_recipes.rewards.weighted_sum import Rewards

Record = dict[str, Any]


@dataclass
class Outcome:
    """Records and metrics of one model, by the name of the evaluation."""

    records: dict[str, list[Record]]
    metrics: dict[str, dict[str, float]]

    @property
    def flat(self) -> dict[str, float]:
        return {f"{name}_{key}": value for name, metrics in self.metrics.items() for key, value in metrics.items()}


@dataclass(frozen=True)
class EvalContext:
    """What a method is made with, in addition to a file.

    Attributes:
        max_length: tokens that the model was made for.
        rewards: of generated answers, in addition to the methods' scores.
        rows: how the rows are read and cut: in a training as its own rows, afterwards as in the run.
        may_lack: a file may lack the columns and the schema that `rows` name; see `fitting_columns`.
        pair_flag: the flag that limits the pairs.
    """

    arguments: "EvaluationArguments"
    tokenizer: "PreTrainedTokenizerBase"
    decoding: "Decoding"
    max_length: int | None = None
    max_drop_ratio: float = 0.01
    cache_dir: str | None = None
    rewards: "Rewards | None" = None
    rows: EvaluatedRows = field(default_factory=EvaluatedRows)
    may_lack: bool = False
    pair_flag: str = "--max_pair_length"


class Method(Protocol):
    """One way to evaluate a model on the rows of one file.

    It is built from rows and tokenizer before any model is loaded, and raises `UserError` then for rows that it cannot
    use, with file and line. Its items (a row, a pair, a window of a long text) are each in exactly one batch, so that
    processes with equally many items run equally many forward passes.

    Attributes:
        forms: of the rows that it can be used on (`registry.form_of`), those that it is made for first, each with its
            names for --eval_methods.
        suffix: of the names of its metrics where a file has several methods.
        note: about what its figures count, for people.
        scores_reward_models: whether it can evaluate a reward model.
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
        """The method on the rows of a file of a form; `names` are those of --eval_methods, if given."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        """One record (plain values that json takes) for each of the items at these indices, in their order.

        The model's mode, settings and cache use are as before afterwards, and the random state is untouched.
        """
        ...

    def largest_pass(self, batch_size: int) -> ForwardPass:
        """The pass of `compute` that takes the most memory, known before any model is loaded."""
        ...

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """The metrics of the records of all items, in their order."""
        ...

    def directions(self) -> dict[str, bool | None]:
        """Whether larger is better, of the metrics of `summarise` that can choose a model; None where neither is.

        A name stands for its parts too (``accuracy`` for ``accuracy/<source>``).
        """
        ...

    def values(self, records: Sequence[Record]) -> dict[str, list[float | None]]:
        """The metrics that are means over the records, with each record's value (None where it has none).

        Larger is better; rows are sorted by the first metric.
        """
        ...

    def draw(self, folder: Path, name: str, outcomes: Mapping[str, Outcome], language: Language = "en") -> list[Path]:
        """Write pictures of the evaluation `name` of one or two models into `folder`; their paths."""
        return []


def run_method(
    method: Method, model: "PreTrainedModel", options: BatchOptions, rank: int = 0, world: int = 1
) -> tuple[list[Record], dict[str, float]]:
    """All records of `method`, each computed by one of `world` processes, and their metrics; the same on all.

    The metrics are NaN where the logits of a record are not finite (`first_not_finite`).

    Each process computes equally many items, the last one repeatedly if need be, because all must take part in each
    forward pass where weights are sharded.
    """
    each = -(-len(method) // world)
    items = [min(rank + world * turn, len(method) - 1) for turn in range(each)]
    records = method.compute(model, items, options)
    if world > 1:
        from accelerate.utils import gather_object

        gathered = dict(gather_object(list(zip(items, records, strict=True))))
        records = [gathered[item] for item in range(len(method))]
    if first_not_finite(records):
        return records, dict.fromkeys(method.directions(), math.nan)
    return records, method.summarise(records)


def first_not_finite(records: Sequence[Record]) -> str | None:
    """The location of the first record that means nothing, as the model's logits were NaN or infinite."""
    for record in records:
        numbers = [value for value in record.values() if isinstance(value, float)]
        if not all(map(math.isfinite, numbers)) or not record.get("is_finite", True):
            return record["location"]
    return None


def versions() -> dict[str, str]:
    """Of the packages on which figures depend."""
    import torch
    import transformers

    from hf_recipes import __version__

    return {"hf_recipes": __version__, "transformers": transformers.__version__, "torch": torch.__version__}


def worst_first(method: Method, outcomes: Sequence[list[Record]]) -> list[tuple[float | None, list[Record]]]:
    """For each row the first model's value and the records of all models; the worst first where there are values."""
    values = method.values(outcomes[0])
    first = next(iter(values.values()), [None] * len(outcomes[0]))
    rows = list(zip(first, map(list, zip(*outcomes, strict=True)), strict=True))
    return sorted(rows, key=lambda row: (row[0] is None, row[0] or 0.0))
