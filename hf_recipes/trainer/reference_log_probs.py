"""What the trainers share that hold a policy to a reference, and learn from answers that are given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl.models.utils import disable_gradient_checkpointing

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.models.inference.forward import evaluating
from hf_recipes.trainer.cpu_lm_head import add_cpu_lm_head
from hf_recipes.trainer.preference_losses import Pairs, Rated
from hf_recipes.trainer.reference import as_reference, settle_reference
from hf_recipes.trainer.row_mean_loss import FILLER, NumberedRows


class Referred(NumberedRows):
    """What the trainers of DPO and KTO share: log-probabilities of the policy and of the reference.

    The reference is computed before the policy, whose activations then have the memory to themselves.

    Args:
        goes_on: the model's adapter was trained before; see `settle_reference`.
    """

    rows: type[Pairs] | type[Rated]

    def __init__(self, *args, goes_on: bool = False, **kwargs):
        self._goes_on = goes_on
        self._evaluated: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)
        self._prepare_models()

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

    def log_probs(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], prefix: str = "", **kwargs: Any):
        """Log-probability of each row's learned tokens in nats, (B,), and what TRL's head told of them."""
        ids, mask, learned = (inputs[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask"))
        labels = ids.masked_fill(learned == 0, IGNORED)
        outputs = model(
            input_ids=ids, attention_mask=mask, labels=labels, **kwargs, use_cache=False, fused_lm_head=True
        )
        return self.summed(outputs.log_probs, learned[:, 1:]), outputs

    def summed(self, log_probs: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        """(B, T - 1), zero where nothing is learned → (B,)."""
        return log_probs.sum(1)

    def reference_log_probs(self, inputs, prefix: str = "", model: torch.nn.Module | None = None) -> torch.Tensor:
        """As `log_probs`, of the model as it was at the start."""
        with self._as_reference(), self.accelerator.autocast():
            return self.log_probs(model or self.ref_model or self.model, inputs, prefix)[0]

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        model, how = self.accelerator.unwrap_model(self.model), self.args.gradient_checkpointing_kwargs
        # Without the policy's dropout, which would be measured as a difference.
        with evaluating(model), disable_gradient_checkpointing(self.model, how):
            if self.ref_model is None and is_peft_model(self.model):
                with as_reference(model):
                    yield
            else:
                yield

    def policy_log_probs(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]):
        routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
        return self.log_probs(model, inputs, **routed)

    def finish_loss(self, rows, inputs, outputs, num_items_in_batch) -> torch.Tensor:
        """The loss of a batch, of which `rows` tell all that counts; noted for the log, or kept for `log` to count."""
        if not self.model.training:
            self._evaluated.append(self.accelerator.gather_for_metrics(rows.stacked()))
        numbers = inputs["row"]
        rows, numbers = rows[numbers != FILLER], numbers[numbers != FILLER]
        losses = self.losses(rows, numbers)
        if self.aux_loss_enabled:
            losses = losses + self.router_aux_loss_coef * outputs.aux_loss
        if self.model.training:
            with torch.no_grad():
                self.note(**rows.rewards(self.args.beta), **self.also_noted(rows))
        return self.mean_over_update(losses, num_items_in_batch)

    def losses(self, rows, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of each of `rows`, (N,); of a batch of an update, `numbers` are their `row`."""
        raise NotImplementedError

    def also_noted(self, rows) -> dict[str, torch.Tensor]:
        return {}

    def summarise(self, rows) -> dict[str, float]:
        """The figures of all rows of an evaluation."""
        found = rows.rewards(self.args.beta)
        return {"loss": self.losses(rows).mean().item()} | {
            name: values.mean().item() for name, values in found.items() if len(values)
        }

    def evaluate(self, *args, **kwargs):
        self._evaluated = []
        return super().evaluate(*args, **kwargs)

    def log(self, logs, start_time=None):
        key = next((key for key in logs if key.startswith("eval_") and key.endswith("loss")), None)
        if key and self._evaluated:
            rows, self._evaluated = self.rows.unstacked(torch.cat(self._evaluated)), []
            logs |= {key.removesuffix("loss") + name: value for name, value in self.summarise(rows).items()}
        super().log(logs, start_time)
