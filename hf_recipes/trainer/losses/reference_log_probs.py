"""What DPO and KTO share: log-probabilities of the policy and of the reference, and the loss of validation rows."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from accelerate.utils import is_peft_model
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.evaluation.method import Method, Record
from hf_recipes.models.inference.batch_options import BatchOptions, ForwardPass
from hf_recipes.models.inference.forward import batches, evaluating, row_groups, scored_pass
from hf_recipes.trainer.losses.collators import PADDING_ROW
from hf_recipes.trainer.losses.cpu_lm_head import add_cpu_lm_head
from hf_recipes.trainer.losses.reference_adapter import REFERENCE, freeze_reference_adapter
from hf_recipes.trainer.losses.row_mean_loss import RowMeanLoss

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel

Inputs = dict[str, torch.Tensor]


class ReferenceLogProbs(RowMeanLoss):
    """Before TRL's `DPOTrainer` or `KTOTrainer` in the bases.

    The reference is computed before the policy, whose activations then have the memory to themselves. `eval_dataset`
    has the rows of a `PreferenceLoss`, so that TRL can compute their reference before the training too.

    Args:
        continues_adapter: the model's adapter was trained before; see `freeze_reference_adapter`.
    """

    def __init__(self, *args, continues_adapter: bool = False, **kwargs):
        self._continues_adapter = continues_adapter
        super().__init__(*args, **kwargs)
        self._prepare_models()
        self.precompute_ref_logps = True  # whether or not they were, `compute_loss` has them in the batch

    def _prepare_models(self) -> None:
        freeze_reference_adapter(self.model, self._continues_adapter)
        if self.args.use_cpu:
            more = ("log_sum_sq_probs",) if getattr(self.args, "use_weighting", False) else ()
            add_cpu_lm_head(self.model, ("log_probs", "entropy", "mean_logits", "is_top1", *more))
            if self.ref_model is not None:
                add_cpu_lm_head(self.ref_model)

    def _prepare_dataset(self, dataset, *args):
        return dataset

    def _prepare_input(self, data):
        if isinstance(data, torch.Tensor):  # upstream rounds log-probabilities to bfloat16 under DeepSpeed
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        self._prepare_models()
        # TRL keeps them in a file whose name has to tell all that they depend on.
        settings = (getattr(self.args, "ld_alpha", None), self.args.bf16, self.args.fp16)
        self._precompute_model_hash = f"{self._precompute_model_hash} {settings}"
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def score_tokens(
        self, model: torch.nn.Module, inputs: Inputs, prefix: str = "", **kwargs: bool
    ) -> FusedCausalLMOutput:
        """The scores of each row's labelled tokens, (B, T - 1)."""
        ids, mask, labelled = (inputs[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask"))
        labels = ids.masked_fill(labelled == 0, IGNORED)
        return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True, **kwargs)

    def log_probs(self, model: torch.nn.Module, inputs: Inputs, prefix: str = "") -> torch.Tensor:
        """Log-probability of each row's labelled tokens in nats, (B,)."""
        outputs = self.score_tokens(model, inputs, prefix)
        return self.sum_tokens(outputs.log_probs, inputs[f"{prefix}completion_mask"][:, 1:])

    def sum_tokens(self, log_probs: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """(B, T - 1), zero where there is no label → (B,)."""
        return log_probs.sum(1)

    def reference_log_probs(self, inputs: Inputs, prefix: str = "", model: torch.nn.Module | None = None):
        """As `log_probs`, of the model as it was at the start."""
        policy, kwargs = self.accelerator.unwrap_model(self.model), self.args.gradient_checkpointing_kwargs
        adapter = nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            adapter = use_adapter(policy, REFERENCE if REFERENCE in policy.peft_config else None)
        # Without the policy's dropout, which would be measured as a difference.
        with (
            evaluating(policy),
            disable_gradient_checkpointing(self.model, kwargs),
            adapter,
            self.accelerator.autocast(),
        ):
            return self.log_probs(model or self.ref_model or self.model, inputs, prefix)

    def look_ahead(self, batches: Sequence[Inputs]) -> None:
        """Compute what the loss needs to know of all batches of an update before the first of them."""

    def get_batch_samples(self, *args):
        samples, count = super().get_batch_samples(*args)
        if samples:
            self.model.eval()  # training_step sets it back
            with torch.no_grad():
                self.look_ahead(samples)
        return samples, count

    def evaluate_rows(self, inputs: Inputs) -> list[Record]:
        """The figures of each row of a validation batch; see `PreferenceLoss`."""
        raise NotImplementedError

    def summarise(self, records: Sequence[Record]) -> dict[str, float]:
        """The metrics of all validation rows, from their figures."""
        raise NotImplementedError

    def real_rows(self, inputs: Inputs) -> tuple[Inputs, torch.Tensor]:
        """A batch without its padding rows, and the numbers of the others.

        One that has no others keeps them, as each process has to run its forward passes; then there are no numbers.
        """
        row = inputs["row"]
        real = row != PADDING_ROW
        kept = real if real.any() else ~real
        return {name: value[kept.repeat(len(value) // len(row))] for name, value in inputs.items()}, row[real]


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
    trainer: ReferenceLogProbs

    def __init__(self, rows: "Dataset", lengths: "np.ndarray", directions: Mapping[str, bool | None]):
        self._locations: list[str] = rows["location"][:]
        self._sides, self._lengths = len(lengths), lengths.max(0)
        self._directions = dict(directions)

    def __len__(self) -> int:
        return len(self._locations)

    def compute(self, model: "PreTrainedModel", items: Sequence[int], options: BatchOptions) -> list[Record]:
        trainer, records = self.trainer, [{}] * len(items)
        size = max(1, options.batch_size // self._sides)
        with evaluating(model):
            for batch in batches([-self._lengths[item] for item in items], size, options):
                longest = self._sides * int(self._lengths[items[batch[0]]])
                for part in (batch[group] for group in row_groups(len(batch), longest)):
                    rows = [trainer.eval_dataset[items[index]] for index in part]
                    figures = trainer.evaluate_rows(trainer._prepare_inputs(trainer.data_collator(rows)))
                    for index, values in zip(part, figures, strict=True):
                        records[index] = {"location": self._locations[items[index]], **values}
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
