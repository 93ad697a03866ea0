"""Callbacks that every stage shares: progress, curves, and evaluation by generation."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import ProgressCallback

from hf_recipes.errors import say
from hf_recipes.evaluation.generation import generate
from hf_recipes.evaluation.metrics import score
from hf_recipes.evaluation.report import draw_curves

CURVES_EVERY = 20.0  # seconds between two drawings, which take about half a second


def prediction_path(output_dir: str, step: int) -> str:
    return os.path.join(output_dir, "predictions", f"step-{step}.jsonl")


@contextmanager
def told_if_unwritten(what: str) -> Iterator[None]:
    """A full disk costs what was to be written, not the training."""
    try:
        yield
    except OSError as error:
        say(f"{what} could not be written ({error.strerror or error}); training goes on")


class RunProgress(ProgressCallback):
    """A bar with loss, tokens per second and time left; plain lines where the output is no terminal."""

    def on_train_begin(self, args, state, control, **kwargs):
        if sys.stderr.isatty():
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        if "loss" in logs and self.training_bar is not None:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.4f}, {logs['tokens_per_second']:,.0f} tokens/s")
            return
        parts = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in logs:
            parts += [f"loss {logs['loss']:.4f}", f"{logs['tokens_per_second']:,.0f} tokens/s"]
            minutes, seconds = divmod(logs["seconds_left"], 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        skipped = ("runtime", "samples_per_second", "steps_per_second", "num_tokens")
        for key, value in logs.items():
            if key.startswith("eval_") and not key.endswith(skipped):
                parts.append(f"{key} {value:.4f}")
        line = "  ".join(parts)
        if len(parts) > 1:
            self.training_bar.write(line) if self.training_bar is not None else print(line, flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


class CurvesCallback(TrainerCallback):
    """Keeps `curves.png` in the output folder current."""

    _drawn = 0.0

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero and time.monotonic() - self._drawn > CURVES_EVERY:
            with told_if_unwritten("curves.png"):
                draw_curves(state.log_history, os.path.join(args.output_dir, "curves.png"))
            self._drawn = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs):
        self._drawn = 0.0
        self.on_log(args, state, control)


class GenerationEvaluation(TrainerCallback):
    """After each evaluation, answers the evaluation rows and scores the answers.

    The scores join the metrics of that evaluation (so that `metric_for_best_model` can name them, as eval_rougeL …),
    the log and the trackers; the answers go to ``predictions/step-N.jsonl``. Over several processes each row is
    answered once.

    Args:
        rows: columns `input_ids`, `prompt_length`, `reference`, `question` and `meta`.
        stop_ids: tokens that end an answer, beside the model's and tokenizer's own.
    """

    def __init__(self, trainer, rows, *, max_new_tokens: int, stop_ids: list[int]):
        self.trainer, self.max_new_tokens, self.stop_ids = trainer, max_new_tokens, stop_ids
        self.rows = [
            {
                "ids": row["input_ids"][: row["prompt_length"]],
                "question": row["question"],
                "reference": row["reference"],
                "choices": (row["meta"] or {}).get("answer_choices"),
            }
            for row in rows
        ]

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        from accelerate.utils import gather_object

        rank, world = args.process_index, args.world_size
        # As many rows for each process, the last ones twice, because all must take part in each forward pass.
        each = -(-len(self.rows) // world)
        own = [min(rank + world * turn, len(self.rows) - 1) for turn in range(each)]
        self.trainer.note_work(f"an evaluation batch of {args.per_device_eval_batch_size} answers")
        texts = generate(
            self.trainer.accelerator.unwrap_model(model),
            self.trainer.processing_class,
            [self.rows[index]["ids"] for index in own],
            max_new_tokens=self.max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            stop_ids=self.stop_ids,
            before_batch=self.trainer.check_stop,
            synced=is_deepspeed_zero3_enabled() or self.trainer.is_fsdp_enabled,
        )
        answers = dict(gather_object(list(zip(own, texts, strict=True))))
        predictions = [answers[index] for index in range(len(self.rows))]
        references, choices = ([row[key] for row in self.rows] for key in ("reference", "choices"))
        scores = {f"eval_{name}": value for name, value in score(predictions, references, choices).items()}
        if metrics is not None:
            metrics.update(scores)
        if state.is_world_process_zero:
            path = prediction_path(args.output_dir, state.global_step)
            lines = []
            for row, prediction in zip(self.rows, predictions, strict=True):
                kept = {key: row[key] for key in ("question", "reference")}
                lines.append(json.dumps({**kept, "prediction": prediction}, ensure_ascii=False) + "\n")
            with told_if_unwritten(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(f"{path}.partial", "w", encoding="utf-8") as file:
                    file.writelines(lines)
                os.replace(file.name, path)
        self.trainer.log(dict(scores))
