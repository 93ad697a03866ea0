"""The loss of validation rows that a trainer compares with a reference: an evaluation method like all others."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from hf_recipes.evaluation.method import Method, Record
from hf_recipes.models.inference.compute import Compute, ForwardPass
from hf_recipes.models.inference.forward import batches, evaluating, scored_pass

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from hf_recipes.trainer.reference_log_probs import ReferenceLogProbs


class PreferenceLoss(Method):
    """What TRL logs of a batch, of all validation rows together, however they are spread over batches and processes.

    The rows and their locations are known before any model is loaded; the trainer, which has the policy, the reference
    and the loss, is set once it is built. A record holds the figures of one row, from `trainer.evaluate_rows`, and the
    metrics are `trainer.summarise` of all records.

    Args:
        lengths: tokens of each side of the rows, (sides, N); the sides of a row go through the model together.
        directions: of the trainer's metrics; see `Method.directions`.
    """

    name = suffix = "preference_loss"
    forms: ClassVar = {}
    trainer: "ReferenceLogProbs"

    def __init__(self, rows: "Dataset", lengths, directions: Mapping[str, bool | None]):
        self._locations: list[str] = rows["location"][:]
        self._sides, self._lengths = len(lengths), lengths.max(0)
        self._directions = dict(directions)

    def __len__(self) -> int:
        return len(self._locations)

    def compute(self, model: "PreTrainedModel", units: Sequence[int], how: Compute) -> list[Record]:
        trainer, records = self.trainer, [{}] * len(units)
        size = max(1, how.batch_size // self._sides)
        with evaluating(model):
            for batch in batches([-self._lengths[unit] for unit in units], size, how):
                rows = [trainer.eval_dataset[units[index]] for index in batch]
                figures = trainer.evaluate_rows(trainer._prepare_inputs(trainer.data_collator(rows)))
                for index, found in zip(batch, figures, strict=True):
                    records[index] = {"location": self._locations[units[index]], **found}
        return records

    def largest_pass(self, batch_size: int) -> ForwardPass:
        rows = min(max(1, batch_size // self._sides), len(self))
        return scored_pass(self._sides * rows, int(self._lengths.max()))

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        return self.trainer.summarise(records)

    def directions(self) -> dict[str, bool | None]:
        return self._directions

    def values(self, records: Sequence[Record]) -> dict[str, list[float | None]]:
        return {}


def mean_of(records: Sequence[Record], name: str) -> float:
    return math.fsum(record[name] for record in records) / len(records)
