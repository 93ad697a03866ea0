"""What our trainers add to transformers' and TRL's: whole checkpoints, the same result at any width, safe endings."""

import dataclasses
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers import TrainerCallback

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, share_weights, write_json
from hf_recipes.evaluation.reports.tables import mean_loss
from hf_recipes.models.checks.saving import check_saved
from hf_recipes.models.quantization import is_quantized
from hf_recipes.trainer.checkpoints import BEGUN_WITH, newest_whole, rotate, sync, write_manifest
from hf_recipes.trainer.failures import (
    Stopped,
    StopSignal,
    Watchdog,
    is_out_of_memory,
    leave_signals_to_the_run,
    out_of_memory,
    places_of,
    sequences,
)
from hf_recipes.trainer.sampler import WholeEpochSampler

STAGING = ".saving"
MAX_NAMED = 20  # rows listed for one update that was skipped


class _StepEnd(TrainerCallback):
    """Stops where a signal asked for it, with a checkpoint in place of the evaluation that may be due."""

    def __init__(self, trainer: "RunMixin"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.first_step = state.global_step
        self.trainer._start_clock(state.global_step)
        if self.trainer.is_deepspeed_enabled:
            self.trainer._ready_engine()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer._heartbeat()
        self.trainer._catch_up()
        # So that the log has every step, also of a run that goes on from this checkpoint: see `mean_loss`.
        control.should_log |= control.should_save or state.global_step >= state.max_steps
        if self.trainer._stop_agreed:
            control.should_evaluate = False
            control.should_log = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save


class RunMixin:
    """Put it before transformers' or TRL's trainer in the bases.

    - Checkpoints appear whole or not at all; a full disk leaves the former ones and the run as they are.
    - Rows are seen once an epoch at any number of processes (`WholeEpochSampler`).
    - An update whose loss or gradient is not finite is left out on all processes and its rows are named.
    - Inside of `attended`, SIGTERM and Ctrl-C end the run at the end of the step, with a checkpoint.
    - `tokens_per_second` (all devices; padding not counted; without the time of evaluations and saves) is logged with
      each loss, and the tokens seen are part of the checkpoint.

    `begun_with`, if set, is kept in each checkpoint. `data_rows`, if set, has the columns `input_ids` and `place`, by
    which rows are named.
    """

    _staging: str | None = None
    begun_with: Mapping[str, Any] | None = None
    _held_problem: str | None = None
    data_rows: Dataset | None = None
    first_step = 0  # where training began: other than 0 where it was resumed

    def __init__(self, *args, **kwargs):
        model = kwargs["model"]
        # TRL puts the adapter of a quantized model into bfloat16, where an update of 1e-5 is lost.
        precise = {p: p.data for p in model.parameters() if p.requires_grad} if is_quantized(model) else {}
        super().__init__(*args, **kwargs)
        for parameter, data in precise.items():
            parameter.data = data
        self._signal = StopSignal()
        self._stop_agreed = False
        self._watchdog: Watchdog | None = None
        self._order: Sampler | None = None
        self._doing = "the first batch"
        self._micro_batches: list[tuple[dict, torch.Tensor]] = []
        self._nonfinite_in_a_row = self._nonfinite_since_log = 0
        self._schedule_is_behind = False
        self._new_tokens = self._unlogged_tokens = 0
        # When the running interval of the log began, and how much of it went into evaluations and saves.
        self._clock, self._paused, self._logged_step = time.monotonic(), 0.0, 0
        self.add_callback(_StepEnd(self))

    @contextmanager
    def with_watchdog(self) -> Iterator[None]:
        """While this lasts, a signal is a request to stop and a process in which nothing moves any more ends."""
        self._watchdog = Watchdog(self.args.ddp_timeout) if self.args.world_size > 1 else None
        with self._signal, self._watchdog or nullcontext():
            yield

    @property
    def stopped_by(self) -> str | None:
        """The signal on which all processes stopped."""
        return (self._signal.name or "a signal to another process") if self._stop_agreed else None

    def train(self, *args, **kwargs):
        """As upstream's, but None where a signal ended it in the middle of an evaluation.

        Raises:
            UserError: out of memory, `max_nonfinite_steps` updates in a row that were not finite, or a checkpoint with
                more than tensors and plain values in it.
        """
        try:
            return super().train(*args, **kwargs)
        except Stopped:
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
            return None
        except pickle.UnpicklingError:
            raise UserError(
                "a file of the checkpoint holds more than tensors and plain values, which is not loaded; go on from "
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
        """What a stage logs beside the loss, given the tokens per second of all devices."""
        return {}

    def figures(self) -> dict:
        """What a stage tells of its training beside loss, tokens and time; called by all processes."""
        return {}

    def note_work(self, what: str) -> None:
        """Say what comes next, for the message of a run that runs out of memory in it."""
        self._doing = what
        self._heartbeat()

    def _heartbeat(self) -> None:
        if self._watchdog is not None:
            self._watchdog.heartbeat()

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether any process has each flag; the same answer on all of them."""
        if self.args.world_size == 1:
            return list(flags)
        mine = torch.tensor([float(flag) for flag in flags], device=self.args.device)
        return [bool(count) for count in self.accelerator.reduce(mine, "sum").tolist()]

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

    # Data

    def padding_row(self, row: dict) -> dict:
        """A row of the training set's columns that is in no loss: it evens out the processes' last batches."""
        ids = row["input_ids"][:2]
        values = {"input_ids": ids, "labels": [-100] * len(ids), "seq_lengths": [len(ids)]}
        return {key: values[key] if key in values else value[:1] for key, value in row.items()}

    def in_order(self, dataset: Dataset, batch_size: int) -> tuple[Dataset, Sampler]:
        """The rows that a sampler may name, and the sampler, which has a `set_epoch`."""
        count, processes = len(dataset), self.accelerator.num_processes
        inner = self._get_train_sampler(dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = WholeEpochSampler(inner, processes, batch_size, count, seed)
        if processes > 1:
            padding_row = Dataset.from_list([self.padding_row(dataset[0])], features=dataset.features)
            dataset = concatenate_datasets([dataset, padding_row])
        return dataset, order

    def _get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs):
        if is_training and isinstance(dataset, Dataset):
            dataset, self._order = self.in_order(dataset, batch_size)

            def sampler_fn(_):
                return self._order

        loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, **kwargs)
        seed = loader.worker_init_fn

        def begin(worker: int) -> None:
            leave_signals_to_the_run()
            if seed is not None:
                seed(worker)

        loader.worker_init_fn = begin
        return loader

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed from the last step: upstream would add one
            self.control.should_training_stop = True
            return
        if self._order is not None:  # accelerate's set_epoch does not reach it through the batches skipped on resuming
            self._order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    # Steps

    def training_step(self, model, inputs, *args, **kwargs):
        self.note_work(self.describe(inputs))
        self._new_tokens += self.tokens_in(inputs)
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
        # A row without a label is the filler of an epoch's last batches; in packs, a document without one is that too,
        # or padding.
        if mask is not None:
            return int(mask[labelled.any(1)].sum())
        documents = (inputs["position_ids"] == 0).flatten().cumsum(0)
        return int(torch.isin(documents, documents[labelled.flatten()]).sum())

    def locations_of(self, batches: list[dict]) -> list[str]:
        """Where the rows of `batches` come from."""
        if self.data_rows is None:
            return []
        return places_of(self.data_rows, [row for inputs in batches for row in sequences(inputs)])

    def _get_grad_norm(self, model, grad_norm=None):
        """Upstream's last call before the optimizer's step: without gradients that step changes nothing.

        DeepSpeed has stepped by then, or left the step out: see `_ready_engine`.
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
        elif bad_loss or not self._scale_can_fall():
            if self.is_deepspeed_enabled:
                self._schedule_is_behind = True
            else:
                model.zero_grad(set_to_none=True)
            self._leave_out(batches, losses)
        else:
            rows = self._named([inputs for inputs, _ in batches])
            say(
                f"step {self.state.global_step + 1}: the gradient is too large for float16's loss scale, which is "
                f"lowered; this update is left out. Rows: {rows}"
            )
        return norm

    def _ready_engine(self) -> None:
        """Have DeepSpeed, which steps inside of `backward`, leave out each update that is not finite.

        It looks at gradients alone, so that a loss that is not finite is given a gradient that is not either, which
        the reduction brings to all processes.
        """
        backward = self.accelerator.backward

        def spread(loss, **kwargs):
            backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan), **kwargs)

        self.accelerator.backward = spread
        # At the smallest scale an update counts as one that is not finite; DeepSpeed would end the run there.
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if getattr(scaler, "dynamic", False):
            scaler.raise_error_at_min_scale = False

    def _catch_up(self) -> None:
        """Upstream steps no schedule where DeepSpeed left a step out; a step's rate is to be the same without it."""
        if self._schedule_is_behind:
            (self.deepspeed.lr_scheduler or self.lr_scheduler).step()
            self._schedule_is_behind = False

    def _scale_can_fall(self) -> bool:
        """Whether float16's loss scale, which begins too large, may be why a gradient is not finite."""
        if self.is_deepspeed_enabled:
            scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
            return getattr(scaler, "dynamic", False) and scaler.cur_scale > scaler.min_scale
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1

    def _named(self, batches: list[dict]) -> str:
        """The rows of `batches` of all processes."""
        from accelerate.utils import gather_object

        locations = gather_object(self.locations_of(batches))
        more = f" and {len(locations) - MAX_NAMED} more" if len(locations) > MAX_NAMED else ""
        return ", ".join(locations[:MAX_NAMED]) + more

    def _leave_out(self, batches: list[tuple[dict, torch.Tensor]], losses: torch.Tensor) -> None:
        from accelerate.utils import gather_object

        self._nonfinite_in_a_row += 1
        self._nonfinite_since_log += 1
        bad = [inputs for (inputs, _), loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        finite_loss = not any(gather_object([bool(bad)]))
        rows = self._named([inputs for inputs, _ in batches] if finite_loss else bad)
        what = "gradient" if finite_loss else "loss"
        limit = self.args.max_nonfinite_steps
        say(f"step {self.state.global_step + 1}: the {what} is not finite; this update is left out. Rows: {rows}")
        if self._nonfinite_in_a_row >= limit:
            raise UserError(
                f"{limit} updates in a row had a {what} that is not finite (--max_nonfinite_steps {limit}); the "
                "weights and the last checkpoint are as before them. Look at the rows named above, lower "
                "--learning_rate, or leave --fp16 out, and go on with --resume_from_checkpoint true"
            )

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
                if self._nonfinite_since_log >= steps:  # upstream logs 0 where it has no finite loss
                    logs["loss"] = float("nan")
                self._nonfinite_since_log = 0
            self._unlogged_tokens = 0
            self._start_clock(step)
        if "train_loss" in logs and self.first_step:  # upstream's leaves out the steps before the run was resumed
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

    def _determine_best_metric(self, metrics, trial):
        """Among the steps that are saved, which alone can be loaded; one without the metric is never the best."""
        if self.args.save_strategy != "best" and not self.control.should_save:
            return False
        metrics = {self.args.metric_for_best_model: float("nan")} | metrics
        return super()._determine_best_metric(metrics, trial)

    # Checkpoints

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save(self, output_dir=None, state_dict=None):
        # DeepSpeed hands on a copy in which tied weights are two, one as large as the vocabulary too much.
        for name, same in getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {}).items():
            if state_dict is not None and name in state_dict and same in state_dict:
                state_dict = {key: value for key, value in state_dict.items() if key != name}
        # training_args.bin is a pickle of all arguments, the Hub token among them; run_config.yaml says the same.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        if self.args.should_save:
            check_saved(self.accelerator.unwrap_model(self.model), folder, state_dict)
            share_weights(folder)

    def _save_optimizer_and_scheduler(self, output_dir):
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save = self.deepspeed.save_checkpoint
        # DeepSpeed writes `latest` itself before a barrier, to which a process whose disk is full would not come.
        with patch.object(self.deepspeed, "save_checkpoint", partial(save, save_latest=False)):
            super()._save_optimizer_and_scheduler(output_dir)
        if self.is_world_process_zero():
            Path(output_dir, "latest").write_text(f"global_step{self.deepspeed.global_steps}", encoding="utf-8")

    def _save_checkpoint(self, model, trial):
        start = time.monotonic()
        self._count_tokens()
        output_dir = Path(self.args.output_dir)
        staging = output_dir / STAGING
        name = f"checkpoint-{self.state.global_step}"
        problem = None
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            problem = self._disk_problem(lambda: (staging / name).mkdir(parents=True))
        [failed] = self._agree(problem is not None)
        if not failed:
            problem = self._write_checkpoint(model, trial, staging / name)
            [failed] = self._agree(problem is not None)
        if failed:
            self._say_unsaved(name, problem)
        elif self.args.should_save:
            shutil.rmtree(output_dir / name, ignore_errors=True)
            os.replace(staging / name, output_dir / name)
            sync(output_dir, files=False)
            rotate(output_dir, self.state.global_step, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._heartbeat()
        self._paused += time.monotonic() - start

    def _write_checkpoint(self, model, trial, folder: Path) -> str | None:
        """Write a whole checkpoint to `folder`, on all processes; what kept this one from it."""
        output_dir = Path(self.args.output_dir)
        self._staging = str(folder.parent)
        # Upstream looks for the best checkpoint in the folder that it writes to, with a barrier that a process whose
        # disk is full would not come to.
        best, self.state.best_global_step = self.state.best_global_step, None
        with self._writes_held():
            problem = self._disk_problem(lambda: super(RunMixin, self)._save_checkpoint(model, trial))
        self._staging, self.state.best_global_step = None, best
        if best is not None and (best == self.state.global_step or (output_dir / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")
        problem = problem or self._held_problem
        [failed] = self._agree(problem is not None)
        if not failed and self.args.should_save:
            problem = self._disk_problem(lambda: self._complete(folder))
        return problem

    def _complete(self, checkpoint: Path) -> None:
        write_json(checkpoint / "trainer_state.json", dataclasses.asdict(self.state))  # upstream writes NaN
        if self.begun_with:
            write_json(checkpoint / BEGUN_WITH, self.begun_with)
        write_manifest(checkpoint, self.args.world_size)
        sync(checkpoint)

    def _disk_problem(self, write: Callable[[], None]) -> str | None:
        """`write()`, and why it did not come to its end where the disk is the reason."""
        try:
            write()
        except Exception as error:
            problem = disk_problem(error)
            if problem is None:
                raise
            return problem
        return None

    @contextmanager
    def _writes_held(self) -> Iterator[None]:
        """While this lasts, what the disk does not take is noted in `_held_problem` and not raised, where savers meet.

        DeepSpeed and FSDP have barriers between their files, and a process that left would keep the others waiting.
        """
        self._held_problem = None
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            yield
            return

        def held(write: Callable) -> Callable:
            def write_or_note(*args, **kwargs):
                problem = self._disk_problem(lambda: write(*args, **kwargs))
                self._held_problem = self._held_problem or problem

            return write_or_note

        owners = [(torch, "save"), (self, "_save")]
        if self.is_deepspeed_enabled:
            owners.append((self.deepspeed, "_copy_recovery_script"))
        with ExitStack() as patches:
            for owner, name in owners:
                patches.enter_context(patch.object(owner, name, held(getattr(owner, name))))
            yield

    def _say_unsaved(self, name: str, problem: str | None) -> None:
        folder = Path(self.args.output_dir)
        free = shutil.disk_usage(folder).free / 1e6
        reason = problem or "another process could not write"
        earlier = newest_whole(folder)
        kept = f"{earlier.name} is whole as before" if earlier else "There is no earlier one"
        say(f"{name} could not be written to {folder} ({reason}; {free:,.0f} MB free). {kept}; training goes on")
