"""An update whose loss or gradient is not finite: left out in all processes, with its rows named."""

import torch
from accelerate.utils import gather_object

from hf_recipes.core.errors import UserError, say

MAX_NAMED = 20  # rows listed for one update that was skipped


class SkipsNonFinite:
    """Part of `RunMixin`, whose `_agree` and `locations_of` it uses: no update that is not finite reaches the weights.

    After `max_nonfinite_steps` of them in a row the run ends.
    """

    _nonfinite_in_a_row = _nonfinite_since_log = 0
    _schedule_is_behind = False

    def _get_grad_norm(self, model, grad_norm=None):
        """transformers calls this right before `optimizer.step()`, which without gradients changes nothing.

        DeepSpeed has stepped by then, or left the step out: see `_prepare_engine`. Processes also agree here on whether
        a signal has come.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        batches, self._micro_batches = self._micro_batches, []
        losses = torch.stack([loss.float() for _, loss in batches])
        finite = norm is None or bool(torch.as_tensor(norm).isfinite())
        if self.is_deepspeed_enabled:
            finite = self.deepspeed.was_step_applied()
        bad_loss, bad_gradient, self._stop_agreed = self._agree(
            not losses.isfinite().all(), not finite, self._signal.name is not None
        )
        if not (bad_loss or bad_gradient):
            self._nonfinite_in_a_row = 0
        elif bad_loss or not self._loss_scale_can_fall():
            if self.is_deepspeed_enabled:
                self._schedule_is_behind = True
            else:
                model.zero_grad(set_to_none=True)
            self._skip_update(batches, losses)
        else:
            rows = self._name_rows([inputs for inputs, _ in batches])
            say(
                f"step {self.state.global_step + 1}: the gradient is too large for float16's loss scale, which is "
                f"lowered; this update is left out. Rows: {rows}"
            )
        return norm

    def _prepare_engine(self) -> None:
        """Have DeepSpeed, which steps inside of `backward`, leave out each update that is not finite.

        It looks at gradients alone, so that a loss that is not finite is given a gradient that is not either, which
        the reduction brings to all processes.
        """
        backward = self.accelerator.backward

        def nan_gradient_of_nan_loss(loss, **kwargs):
            backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan), **kwargs)

        self.accelerator.backward = nan_gradient_of_nan_loss
        # At the smallest scale an update counts as one that is not finite; DeepSpeed would end the run there.
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if getattr(scaler, "dynamic", False):
            scaler.raise_error_at_min_scale = False

    def _step_schedule(self) -> None:
        """Step the schedule, as transformers does not where DeepSpeed left a step out: a step has its rate anyway."""
        if self._schedule_is_behind:
            (self.deepspeed.lr_scheduler or self.lr_scheduler).step()
            self._schedule_is_behind = False

    def _loss_scale_can_fall(self) -> bool:
        """Whether float16's loss scale, which begins too large, may be why a gradient is not finite."""
        if self.is_deepspeed_enabled:
            scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
            return getattr(scaler, "dynamic", False) and scaler.cur_scale > scaler.min_scale
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1

    def _name_rows(self, batches: list[dict]) -> str:
        """The locations of the rows of `batches` of all processes."""
        locations = gather_object(self.locations_of(batches))
        more = f" and {len(locations) - MAX_NAMED} more" if len(locations) > MAX_NAMED else ""
        return ", ".join(locations[:MAX_NAMED]) + more

    def _skip_update(self, batches: list[tuple[dict, torch.Tensor]], losses: torch.Tensor) -> None:
        self._nonfinite_in_a_row += 1
        self._nonfinite_since_log += 1
        bad = [inputs for (inputs, _), loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        finite_loss = not any(gather_object([bool(bad)]))
        rows = self._name_rows([inputs for inputs, _ in batches] if finite_loss else bad)
        what = "gradient" if finite_loss else "loss"
        limit = self.args.max_nonfinite_steps
        say(f"step {self.state.global_step + 1}: the {what} is not finite; this update is left out. Rows: {rows}")
        if self._nonfinite_in_a_row >= limit:
            raise UserError(
                f"{limit} updates in a row had a {what} that is not finite (--max_nonfinite_steps {limit}); the "
                "weights and the last checkpoint are as before them. Look at the rows named above, lower "
                "--learning_rate, or leave --fp16 out, and resume with --resume_from_checkpoint true"
            )
