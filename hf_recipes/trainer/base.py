"""What our trainers add to transformers' and TRL's: whole checkpoints, the same result at any width, safe endings."""

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_recipes.core.errors import UserError
from hf_recipes.evaluation.reports.tables import mean_loss
from hf_recipes.models.inference.document_attention import attend_by_document
from hf_recipes.models.quantization.settings import is_quantized
from hf_recipes.trainer.checkpoints.save import WholeCheckpoints
from hf_recipes.trainer.failures.nonfinite import SkipsNonFinite
from hf_recipes.trainer.failures.out_of_memory import is_out_of_memory, out_of_memory
from hf_recipes.trainer.failures.row_locations import row_locations, sequences
from hf_recipes.trainer.failures.signals import Stopped, StopSignal
from hf_recipes.trainer.failures.watchdog import Watchdog
from hf_recipes.trainer.losses.expert_balance import expert_count, experts_counted
from hf_recipes.trainer.losses.source_losses import SourceLosses
from hf_recipes.trainer.reports.trackers import kept_from_transformers
from hf_recipes.trainer.sampler import WholeEpochs


class _StepEnd(TrainerCallback):
    """Stops after a signal, with a checkpoint instead of the evaluation that may be due."""

    def __init__(self, trainer: "RunMixin"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.first_step = state.global_step
        self.trainer._start_clock(state.global_step)
        if self.trainer.is_deepspeed_enabled:
            self.trainer._prepare_engine()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._heartbeat()
        self.trainer._step_schedule()
        # So that the log has every step, also of a run that resumes from this checkpoint: see `mean_loss`.
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        if self.trainer._stop_agreed:
            control.should_evaluate = False
            control.should_log = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save


class RunMixin(SkipsNonFinite, WholeCheckpoints, WholeEpochs, SourceLosses):
    """Put it before transformers' or TRL's trainer in the bases.

    - Checkpoints appear whole or not at all (`WholeCheckpoints`).
    - An update whose loss or gradient is not finite is left out and its rows are named (`SkipsNonFinite`).
    - The loss of each source is logged (`SourceLosses`), and is part of `training_metrics`, which a stage may add to.
    - Rows are seen once an epoch at any number of processes (`WholeEpochs`).
    - Inside of `with_watchdog`, SIGTERM and Ctrl-C end the run at the end of the step, with a checkpoint.
    - Evaluation is by the methods of `Evaluations` alone.
    - `tokens_per_second` (all devices; padding not counted; without the time of evaluations and saves) is logged with
      each loss, and the tokens seen are part of the checkpoint.

    `data_rows`, if set, has the columns `input_ids` and `location`, by which rows are named.
    """

    data_rows: Dataset | None = None
    first_step = 0  # where training began: other than 0 where it was resumed

    def __init__(self, *args, **kwargs):
        model = kwargs["model"]
        # TRL puts the adapter of a quantized model into bfloat16, where an update of 1e-5 is lost.
        precise = {p: p.data for p in model.parameters() if p.requires_grad} if is_quantized(model) else {}
        self._base_settings = {"use_cache": model.config.use_cache} if "use_cache" in vars(model.config) else {}
        attend_by_document()
        with kept_from_transformers(kwargs["args"]):
            super().__init__(*args, **kwargs)
        for parameter, data in precise.items():
            parameter.data = data
        if getattr(self, "aux_loss_enabled", False):  # TRL's losses ask for them themselves; generation fails with them
            self.model.config.get_text_config().output_router_logits = False
            self.aux_loss_enabled = expert_count(self.model.config) > 0
        if getattr(self.args, "disable_dropout", False):
            for module in self.model.modules():  # where it is a number, not a module, TRL leaves it
                if isinstance(getattr(module, "attention_dropout", None), float):
                    module.attention_dropout = 0.0
        # accelerate's leaves out what it takes for repeated rows: of a sum a process, whole processes. Here no row is
        # repeated, and padding rows have no labels.
        self.accelerator.gather_for_metrics = self.accelerator.gather
        self._signal = StopSignal()
        self._stop_agreed = False
        self._watchdog: Watchdog | None = None
        self._doing = "the first batch"
        self._micro_batches: list[tuple[dict, torch.Tensor]] = []
        self._new_tokens = self._unlogged_tokens = 0
        # When the running interval of the log began, and how much of it went into evaluations and saves.
        self._clock, self._paused, self._logged_step = time.monotonic(), 0.0, 0
        self.add_callback(_StepEnd(self))

    @contextmanager
    def with_watchdog(self) -> Iterator[None]:
        """While this lasts, a signal is a request to stop, and a process in which no batch ends any more ends."""
        self._watchdog = Watchdog(self.args.ddp_timeout) if self.args.world_size > 1 else None
        with self._signal, self._watchdog or nullcontext():
            yield

    @property
    def stopped_by(self) -> str | None:
        """The signal on which all processes stopped."""
        return (self._signal.name or "a signal to another process") if self._stop_agreed else None

    def train(self, *args, **kwargs):
        """As transformers', but None where a signal ended it in the middle of an evaluation."""
        try:
            return super().train(*args, **kwargs)
        except Stopped:
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
            return None
        except pickle.UnpicklingError:
            raise UserError(
                "a file of the checkpoint holds more than tensors and plain values, which is not loaded; resume from "
                "another one"
            ) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                out_of_memory(
                    self._doing,
                    self.args,
                    quantized=is_quantized(self.model),
                    adapter=hasattr(self.model, "peft_config"),
                )
            ) from None

    def _start_clock(self, step: int) -> None:
        self._clock, self._paused, self._logged_step = time.monotonic(), 0.0, step

    def rates(self, tokens_per_second: float) -> dict[str, float]:
        """What a stage logs with the loss, given the tokens per second of all devices."""
        return {}

    def begin_work(self, what: str) -> None:
        """Remember what comes next, for the message of a run that runs out of memory in it."""
        self._doing = what
        self._heartbeat()

    def _heartbeat(self) -> None:
        if self._watchdog is not None:
            self._watchdog.heartbeat()

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether any process has each flag; the same answer on all of them."""
        if self.args.world_size == 1:
            return list(flags)
        counts = torch.tensor([float(flag) for flag in flags], device=self.args.device)
        return [bool(count) for count in self.accelerator.reduce(counts, "sum").tolist()]

    def check_stop(self) -> None:
        """Between two batches of an evaluation, on all processes alike: raise `Stopped` where a signal came."""
        self._heartbeat()
        [self._stop_agreed] = self._agree(self._signal.name is not None)
        if self._stop_agreed:
            raise Stopped

    def _send_telemetry(self) -> None:
        """Nothing leaves the machine that the user did not ask for."""

    def create_model_card(self, *args, **kwargs) -> None:
        """TRL's callers expect this; ours is written once, by `run.train`."""

    def init_hf_repo(self, *args, **kwargs) -> None:
        """`Publisher` pushes: transformers' own would end the run where the Hub cannot be reached."""

    push_to_hub = _push_from_checkpoint = init_hf_repo

    # Steps

    def training_step(self, model, inputs, *args, **kwargs):
        self.begin_work(self.describe(inputs))
        self._new_tokens += self.tokens_in(inputs)
        with experts_counted(self.model.config):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_batches.append((inputs, loss))
        return loss

    def describe(self, inputs: dict) -> str:
        """A training batch, for the message of a run that runs out of memory in it."""
        rows, length = inputs["input_ids"].shape
        return f"a training batch of {rows} × {length:,} tokens"

    def tokens_in(self, inputs: dict) -> int:
        """The tokens of a batch, without padding."""
        labelled, mask = inputs["labels"] != -100, inputs.get("attention_mask")
        # A row without a label is a padding row; in packed rows, a document without one is that, or padding.
        if mask is not None:
            return int(mask[labelled.any(1)].sum())
        documents = (inputs["position_ids"] == 0).flatten().cumsum(0)
        return int(torch.isin(documents, documents[labelled.flatten()]).sum())

    def locations_of(self, batches: list[dict]) -> list[str]:
        """Where the rows of `batches` come from."""
        if self.data_rows is None:
            return []
        return row_locations(self.data_rows, [row for inputs in batches for row in sequences(inputs)])

    # Log

    def _count_tokens(self) -> None:
        """Add the tokens of all processes since the last call to the state."""
        count = torch.tensor(self._new_tokens, device=self.args.device)
        count = int(self.accelerator.reduce(count, "sum"))
        self.state.num_input_tokens_seen += count
        self._unlogged_tokens += count
        self._new_tokens = 0

    def log(self, logs, start_time=None):
        if "loss" in logs:
            self._count_tokens()
            now, step = time.monotonic(), self.state.global_step
            seconds, steps = max(1e-9, now - self._clock - self._paused), max(1, step - self._logged_step)
            logs["tokens_per_second"] = round(self._unlogged_tokens / seconds, 1)
            logs |= self.rates(self._unlogged_tokens / seconds)
            logs["num_tokens"] = self.state.num_input_tokens_seen
            logs["seconds_left"] = round(seconds / steps * (self.state.max_steps - step))
            if self._nonfinite_since_log:
                logs["nonfinite_steps"] = self._nonfinite_since_log
                if self._nonfinite_since_log >= steps:  # transformers logs 0 where it has no finite loss
                    logs["loss"] = float("nan")
                self._nonfinite_since_log = 0
            self._unlogged_tokens = 0
            self._start_clock(step)
        if "train_loss" in logs and self.first_step:  # transformers' lacks the steps before the run was resumed
            logs["train_loss"] = mean_loss(self.state.log_history)
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        """Run the evaluation methods, by `Evaluations.on_evaluate`; transformers' own loop is never used."""
        start, metrics = time.monotonic(), {}
        self.model.eval()  # as that loop leaves it, so that TRL logs nothing of the training here
        try:
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics
        finally:
            self._paused += time.monotonic() - start
