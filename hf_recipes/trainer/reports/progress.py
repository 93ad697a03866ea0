"""Callbacks that every stage shares: progress and curves."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from hf_recipes.core.errors import say
from hf_recipes.core.files import to_json
from hf_recipes.evaluation.reports.plots import draw_curves
from hf_recipes.evaluation.reports.tables import shown
from hf_recipes.models.devices import memory_in_use

LOGGED = (
    "accuracy",
    "reward",
    "rewards/accuracies",
    "rewards/margins",
    "kl",
)  # printed with the loss
LOG = "log.jsonl"
CURVES_EVERY = 20.0  # seconds between two drawings, which take about half a second


def prediction_path(output_dir: str, step: int, name: str = "") -> str:
    return os.path.join(output_dir, "predictions", name, f"step-{step}.jsonl")


@contextmanager
def warn_on_write_error(what: str, then: str = "training continues") -> Iterator[None]:
    """Report any error of what only shows the results, and go on: it must not end the training."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        known = getattr(error, "strerror", None) or f"{type(error).__name__}: {reason}"
        say(f"{what} could not be written ({known}); {then}")


class RunProgress(ProgressCallback):
    """A bar with loss, tokens per second and time left; plain lines where the output is no terminal."""

    def on_train_begin(self, args, state, control, **kwargs):
        if sys.stderr.isatty() and not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if "loss" in logs and self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}, {logs['tokens_per_second']:,.0f} tokens/s")
            return
        parts = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in logs:
            parts += [f"{key} {logs[key]:.4f}" for key in ("loss", *LOGGED) if logs.get(key) is not None]
            parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
            minutes, seconds = divmod(logs["seconds_left"], 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        for key, value in logs.items():
            if key.startswith("eval_") and (shown(key[5:]) or key.endswith("token_accuracy")):
                parts.append(f"{key} {value:.4f}")
        line = "  ".join(parts)
        if len(parts) > 1:
            self.training_bar.write(line) if self.training_bar is not None else print(line, flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


class LogFile(TrainerCallback):
    """Adds each entry of the trainer's log to `log.jsonl` in the output folder, with the time and the memory in use."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:  # of a resumed run: what came after its checkpoint goes
            self._write(args, [dict(entry) for entry in state.log_history], "w")

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.log_history:
            use = {"time": round(time.time(), 1), "memory": memory_in_use()}
            self._write(args, [{**state.log_history[-1], **use}], "a")

    def _write(self, args, entries: Sequence[dict], mode: str) -> None:
        with warn_on_write_error(LOG), open(os.path.join(args.output_dir, LOG), mode, encoding="utf-8") as file:
            file.writelines(to_json(entry) + "\n" for entry in entries)


class CurvesCallback(TrainerCallback):
    """Keeps `curves.png` in the output folder current."""

    _updated = 0.0

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self._updated > CURVES_EVERY:
            with warn_on_write_error("curves.png"):
                draw_curves(state.log_history, os.path.join(args.output_dir, "curves.png"))
            self._updated = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self._updated = 0.0
        self.on_log(args, state, control)
