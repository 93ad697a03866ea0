"""What the trainers of DPO and KTO share: log-probabilities of policy and reference, and TRL's loss over an update."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from accelerate.utils import is_peft_model
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.models.inference.forward import evaluating
from hf_recipes.trainer.cpu_lm_head import add_cpu_lm_head
from hf_recipes.trainer.reference import REFERENCE, settle_reference
from hf_recipes.trainer.row_mean_loss import PADDING_ROW, RowMeanLoss

Batch = dict[str, torch.Tensor]


class ReferenceLogProbs(RowMeanLoss):
    """Before TRL's `DPOTrainer` or `KTOTrainer` in the bases: its loss, a mean over a batch, as one over an update.

    The reference is computed before the policy, whose activations then have the memory to themselves.

    Args:
        goes_on: the model's adapter was trained before; see `settle_reference`.
    """

    def __init__(self, *args, continues_adapter: bool = False, **kwargs):
        self._goes_on = continues_adapter
        super().__init__(*args, **kwargs)
        self._prepare_models()
        self.precompute_ref_logps = True  # whether or not they were, `compute_loss` has them in the batch

    def _prepare_models(self) -> None:
        settle_reference(self.model, self._goes_on)
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
        how = (getattr(self.args, "ld_alpha", None), self.args.bf16, self.args.fp16)
        self._precompute_model_hash = f"{self._precompute_model_hash} {how}"
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def log_probs(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], prefix: str = "") -> torch.Tensor:
        """Log-probability of each row's learned tokens in nats, (B,)."""
        ids, mask, labelled = (inputs[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask"))
        labels = ids.masked_fill(labelled == 0, IGNORED)
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
        return self.summed(outputs.log_probs, labelled[:, 1:])

    def summed(self, log_probs: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """(B, T - 1), zero where nothing is learned → (B,)."""
        return log_probs.sum(1)

    def reference_log_probs(self, inputs, prefix: str = "", model: torch.nn.Module | None = None) -> torch.Tensor:
        """As `log_probs`, of the model as it was at the start."""
        policy, how = self.accelerator.unwrap_model(self.model), self.args.gradient_checkpointing_kwargs
        adapter = nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            adapter = use_adapter(policy, REFERENCE if REFERENCE in policy.peft_config else None)
        # Without the policy's dropout, which would be measured as a difference.
        with evaluating(policy), disable_gradient_checkpointing(self.model, how), adapter, self.accelerator.autocast():
            return self.log_probs(model or self.ref_model or self.model, inputs, prefix)

    def look_ahead(self, batches: Iterable[Batch]) -> None:
        """What the loss needs to know of all batches of an update, or of an evaluation, before the first of them."""

    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        if batches:
            self.model.eval()  # training_step sets it back
            with torch.no_grad():
                self.look_ahead(batches)
        return batches, count

    def evaluation_loop(self, dataloader, *args, **kwargs):
        def batches() -> Iterator[Batch]:
            for inputs in dataloader:
                self.check_stop()
                yield self.without_repeated_rows(inputs)

        self.model.eval()
        with torch.no_grad():
            self.look_ahead(batches())
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def real_rows(self, inputs: Batch) -> tuple[Batch, torch.Tensor]:
        """A batch without its padding rows, and the numbers of the others.

        One that has no others keeps them, as each process has to run its forward passes; then there are no numbers.
        """
        row = inputs["row"]
        real = row != PADDING_ROW
        kept = real if real.any() else ~real
        return {name: value[kept.repeat(len(value) // len(row))] for name, value in inputs.items()}, row[real]

    def upstream_loss(self, model: Callable, batch: Batch) -> tuple[torch.Tensor | float, dict[str, float]]:
        """TRL's loss of a batch that has the reference's log-probabilities, and the means that it would log."""
        with self._without_gathering():
            loss = self._compute_loss(model, {name: value for name, value in batch.items() if name != "row"}, False)
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = {name: values[-1] for name, values in metrics.items()}
        metrics.clear()
        return loss, means

    @contextmanager
    def _without_gathering(self) -> Iterator[None]:
        """TRL gathers what it logs, for which all processes need as many rows; `noted` adds up what they have."""
        with (
            patch.object(self.accelerator, "gather", lambda values: values),
            patch.object(self.accelerator, "gather_for_metrics", lambda values: values),
        ):
            yield

    def note_means(self, means: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """`note` means over as many rows as `counts` says; those of none need not be given."""
        for name, count in counts.items():
            self.note(**{name: torch.full((count,), means.get(name, 0.0), device=self.args.device)})

    def finish_loss(self, losses: torch.Tensor, num_items_in_batch: torch.Tensor | None) -> torch.Tensor:
        """`mean_over_update`, and in an evaluation the mean over that."""
        if not self.model.training:
            self.note(loss=losses)
        return self.mean_over_update(losses, num_items_in_batch)
