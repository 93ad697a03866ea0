"""What a run writes once it is trained: weights, ledger, metrics, model card."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import disk_problem, write_json, write_text
from hf_recipes.core.folders import OutputFolder
from hf_recipes.core.ledger import HELD_OUT, LEDGER, Ledger, write_ledgers
from hf_recipes.dry_run.peak_memory import PeakMemory, describe
from hf_recipes.evaluation.reports import plots
from hf_recipes.evaluation.reports import tables as report
from hf_recipes.run.early_stopping import stopped_early
from hf_recipes.run.output_dir import CARD, END, METRICS, SETTINGS
from hf_recipes.trainer.checkpoints.find import newest_whole
from hf_recipes.trainer.checkpoints.save import SAVING
from hf_recipes.trainer.failures.signals import Stopped
from hf_recipes.trainer.reports.progress import warn_on_write_error


def _trained(trainer, seconds: float) -> dict:
    """Report the course of the training; its figures for metrics.json."""
    state, first, loss = trainer.state, trainer.first_step, report.mean_loss(trainer.state.log_history)
    mean = "" if loss is None else f", mean training loss {loss:.4f}"
    rewards = [entry["reward"] for entry in state.log_history if entry.get("reward") is not None]
    if rewards:  # the loss is about 0 throughout
        mean = f", mean reward {rewards[0]:.4f} at first and {rewards[-1]:.4f} at last"
    if state.global_step > first:
        minutes, rest = divmod(round(seconds), 60)
        since = f" from step {first}" if first else ""
        say(f"trained{since} to step {state.global_step} in {minutes}:{rest:02d}{mean}")
    else:
        say(f"all {state.global_step} steps were trained before{mean}")
    figures = {"steps": state.global_step, "loss": loss, "tokens": state.num_input_tokens_seen, "epoch": state.epoch}
    if stop := stopped_early(trainer.args, state):
        figures["stopped_early"] = stop
    return {**figures, "from_step": first, "seconds": round(seconds, 1), **trainer.training_metrics()}


def finish(trainer, folder: OutputFolder | None, *results) -> None:
    saved = False
    try:
        _save_model(trainer, folder)
        saved = True
        _write_results(trainer, *results)
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        output_dir, newest = Path(trainer.args.output_dir), newest_whole(trainer.args.output_dir)
        weights = "The trained weights are whole; the figures are not. " if saved else ""
        if newest is not None:
            last = newest.name == f"checkpoint-{trainer.state.global_step}"
            rest = "without training again" if last else "after training again from there"
            then = f"{newest.name} is whole. Make room, then --resume_from_checkpoint true writes the rest {rest}"
        elif saved:
            then = "Keep them, make room, and scripts/evaluate.py measures them"
        else:
            then = "There is no checkpoint: once there is room, --overwrite_output_dir trains anew"
        raise UserError(f"{output_dir}: the results could not be written ({problem}). {weights}{then}") from None


def _write_results(
    trainer,
    card: Callable[[Path], str],
    ledgers: dict[str, Ledger],
    seconds: float,
    memory: PeakMemory,
    trackers,
    settings: dict,
) -> None:
    """Of saved weights: ledger, metrics, the last evaluation, metrics with it; it and what only shows them may fail."""
    output_dir, state = Path(trainer.args.output_dir), trainer.state
    if trainer.is_world_process_zero():
        write_ledgers(output_dir / LEDGER, **ledgers)  # of a stream, known only now
    train = _trained(trainer, seconds)
    best = best_step(trainer)
    step = best["step"] if best else state.global_step
    if best:
        name, value = best["metric"], report.as_text(best["metric"], best["value"])
        say(f"kept: the weights of step {step} of {state.global_step}, the best by {name} ({value})")
    elif trainer.args.load_best_model_at_end:
        say(f"kept: the last step's weights; no saved step has {trainer.args.metric_for_best_model}")
    elif "stopped_early" in train:
        say("kept: the last step's weights; --load_best_model_at_end True keeps the best saved step's")
    figures = {"steps": step, "best": best, "train": train}
    metrics = _write_metrics(trainer, figures, memory, settings)
    if trainer.eval_dataset is not None and not metrics["after"]:
        _evaluate(trainer)
        metrics = _write_metrics(trainer, figures, memory, settings)  # with the memory that the evaluation took
    before, after = metrics["before"], metrics["after"]
    whole = "weights and metrics.json are whole"
    with warn_on_write_error("the line about memory", whole):
        if line := describe(metrics["memory"]):
            say(line)
    if not trainer.is_world_process_zero():
        return
    shows: dict[str, Callable[[], object]] = {
        CARD: lambda: write_text(output_dir / CARD, card(output_dir)),
        "curves.png": lambda: plots.draw_curves(state.log_history, output_dir / "curves.png"),
        "the trackers' last entries": lambda: trackers.finish(
            state.global_step, report.comparison(before, after) if after else None
        ),
        "the report": lambda: _print_report(output_dir, step, before, after),
    }
    for what, show in shows.items():
        with warn_on_write_error(what, whole):
            show()


def _write_metrics(trainer, figures: dict, memory: PeakMemory, settings: dict) -> dict[str, Any]:
    """Write `figures`, the memory and the evaluations so far; they are returned."""
    step, by_step = figures["steps"], report.evaluations(trainer.state.log_history)
    before, after = by_step.get(0) if step else None, by_step.get(step)
    metrics = {**figures, "memory": memory.read(), "before": before, "after": after}
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir) / METRICS, {**metrics, "settings": settings})
    return metrics


def best_step(trainer) -> dict[str, Any] | None:
    """The step whose weights were loaded at the end, and by what; None where they are the last step's."""
    state, name = trainer.state, trainer.args.metric_for_best_model
    if not (trainer.args.load_best_model_at_end and os.path.isdir(state.best_model_checkpoint or "")):
        return None
    step, name = int(state.best_model_checkpoint.rpartition("-")[2]), name.removeprefix("eval_")
    value = report.evaluations(state.log_history).get(step, {}).get(name)
    return {"step": step, "of": state.global_step, "metric": name, "value": value}


def _evaluate(trainer) -> None:
    try:
        trainer.evaluate()
    except Stopped:
        raise
    except Exception as error:
        if trainer.args.world_size > 1:  # the other processes wait in this evaluation
            say(f"the weights are in {trainer.args.output_dir}; what failed is their last evaluation")
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        say(
            f"the last evaluation failed ({kind}{' '.join(str(error).split())[:300]}); the weights and the other "
            f"figures are in {trainer.args.output_dir}, and scripts/evaluate.py evaluates them"
        )


def _save_model(trainer, folder: OutputFolder | None) -> None:
    """Save the model by way of an empty folder, so that its files are whole and their names are known."""
    output_dir = Path(trainer.args.output_dir)
    temporary = output_dir / SAVING
    if folder is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if folder is None:
        return
    (temporary / CARD).unlink(missing_ok=True)  # PEFT's own
    names = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
    folder.claim((*END, *(re.escape(name.as_posix()) for name in names)))
    for name in names:
        (output_dir / name).parent.mkdir(exist_ok=True)
        os.replace(temporary / name, output_dir / name)
    shutil.rmtree(temporary)


def _print_report(output_dir: Path, step: int, before: dict | None, after: dict | None) -> None:
    if after:
        say(f"\n{report.comparison(before, after)}\n")
        for last in sorted((output_dir / "predictions").rglob(f"step-{step}.jsonl")):
            answers, first = report.read_predictions(last), last.with_name("step-0.jsonl")
            if answers and "prediction" in answers[0]:
                say(report.samples(report.read_predictions(first) if before and first.is_file() else None, answers))
                break
    weights = "adapter" if (output_dir / "adapter_config.json").is_file() else "model"
    say(f"In {output_dir}:")
    for name, what in (
        (".", f"the {weights} and the tokenizer"),
        (SETTINGS, "the settings; --config with this file repeats the run"),
        (LEDGER, "what became of every row"),
        (HELD_OUT, "where the rows are that were held out"),
        (METRICS, "all figures"),
        ("log.jsonl", "what was logged, an entry a line"),
        ("curves.png", "loss and scores over the steps"),
        ("predictions", "every answer or score of every evaluation; of pairs also a histogram"),
        ("samples", "the newest answers at each log, with what they are worth"),
        (CARD, "the model card"),
        ("swanlog", "swanlab's runs; `swanlab watch` with this folder shows them"),
        ("wandb", "wandb's runs; `wandb sync` uploads one"),
        ("tensorboard", "event files; `tensorboard --logdir` with this folder shows them"),
    ):
        if (output_dir / name).exists():
            say(f"  {name.ljust(17)} {what}")
