"""The skeleton that all stages share: the output folder, resuming, the training itself, and the report."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_recipes.data.ledger import LEDGER, Ledger, write_ledgers
from hf_recipes.errors import UserError, say
from hf_recipes.evaluation import report
from hf_recipes.parsing import Parser
from hf_recipes.processes import leave_process_group
from hf_recipes.training.checkpoints import find_checkpoint
from hf_recipes.training.evaluation import evaluated_with
from hf_recipes.training.faults import Stopped, is_of_disk
from hf_recipes.training.memory import PeakMemory, describe
from hf_recipes.training.model_card import NAMES, hub_names, model_card
from hf_recipes.training.publishing import STAGING as PUBLISHING
from hf_recipes.training.publishing import Publisher
from hf_recipes.training.trackers import STATE as TRACKERS
from hf_recipes.training.trackers import add_trackers
from hf_recipes.training.trainer import STAGING

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_recipes.arguments import RunArguments

T = TypeVar("T")
SHARING = 20.0  # seconds in which what one node writes is seen by the others
# What may be another path on each node.
LOCAL = {"model_name_or_path", "peft_path", "output_dir", "cache_dir", "train_file", "validation_file"}
OWNER = ".run"  # says which launch cleared the folder and wrote its checkpoints
RESULTS = (
    "run_config.yaml",
    LEDGER,
    "metrics.json",
    "curves.png",
    "predictions",
    "README.md",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tensorboard",
    NAMES,
    TRACKERS,
    STAGING,
    OWNER,
)
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors*")


def on_main_process(args: "TrainingArguments", function: Callable[..., T], *values: Any) -> T:
    """`function(*values)`, called in the first process; its result in all. Where it fails, the others end."""
    if args.world_size == 1:
        return function(*values)
    from accelerate.utils import broadcast_object_list

    outcome: list = [None, True]
    if args.process_index == 0:
        try:
            outcome = [function(*values), False]
        except UserError as error:
            broadcast_object_list([None, True])
            raise error from None
    outcome = broadcast_object_list(outcome)
    if outcome[1]:
        sys.exit(1)
    return outcome[0]


def _launch() -> str:
    """What the processes of one torchrun share, its restarts included, and no other launch has."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"


def _is_restart(path: Path) -> bool:
    """Whether torchrun --max_restarts began again what this launch had already begun in this folder."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return again and (path / OWNER).is_file() and (path / OWNER).read_text(encoding="utf-8") == _launch()


def check_output_dir(args: "RunArguments", *sources: str | None) -> None:
    """Refuse a folder that holds something unless a flag said what to do with it; nothing is changed yet.

    Args:
        sources: the model and the adapter that the run starts from.

    Raises:
        UserError: the folder is not empty, is a file, or has one of `sources` in it.
    """
    path = Path(args.output_dir)
    for source in filter(None, sources):
        if os.path.isdir(source) and path.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UserError(
                f"--output_dir {path}: the run would write over {source}, which it starts from; name another"
            )
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: this is a file")
    wanted = args.resume_from_checkpoint
    if wanted and wanted.lower() != "true" and not os.path.isdir(wanted):
        raise UserError(f"--resume_from_checkpoint {wanted}: no such folder")
    decided = args.overwrite_output_dir or args.resume_from_checkpoint or _is_restart(path)
    if path.is_dir() and any(path.iterdir()) and not decided:
        raise UserError(
            f"--output_dir {path}: the folder is not empty; go on with --resume_from_checkpoint true, start over with "
            "--overwrite_output_dir, or choose another folder"
        )


def enter_output_dir(args: "RunArguments") -> str | None:
    """Create the folder, or with `overwrite_output_dir` delete a former run's checkpoints and results and nothing else.

    Returns:
        The checkpoint to go on from: what `resume_from_checkpoint` says, or the newest where torchrun restarted.

    Raises:
        UserError: the folder cannot be created, or as `find_checkpoint`.
    """
    path = Path(args.output_dir)
    restarted = _is_restart(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if args.overwrite_output_dir and not restarted:
            checkpoints = [p for p in path.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
            weights = [p for name in WEIGHTS for p in path.glob(name)]
            unsent = path.glob(f"{PUBLISHING}*")
            for target in (*(path / name for name in RESULTS), *checkpoints, *weights, *unsent):
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
        (path / OWNER).write_text(_launch(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output_dir {path}: cannot be written to ({error.strerror})") from None
    return find_checkpoint(
        args.output_dir,
        args.resume_from_checkpoint or ("true" if restarted else None),
        world_size=args.world_size,
        inexact=args.inexact_resume,
        trust=args.trust_checkpoint,
    )


def check_agreement(args: "TrainingArguments", parser: Parser, **sizes: int) -> None:
    """Refuse processes that were started with different settings or data, or on nodes that do not share the folder.

    Args:
        sizes: of the data, by what they count.

    Raises:
        UserError: what differs, and where; on all processes.
    """
    if args.world_size == 1:
        return
    from accelerate.utils import broadcast_object_list, gather_object

    path = Path(args.output_dir) / OWNER
    token = [path.read_text(encoding="utf-8") if args.process_index == 0 else None]
    broadcast_object_list(token)
    end = time.monotonic() + SHARING
    while not (shared := path.is_file() and path.read_text(encoding="utf-8") == token[0]) and time.monotonic() < end:
        time.sleep(0.2)
    own = {f"--{name}": value for name, value in parser.recorded().items() if name not in LOCAL} | sizes
    found = gather_object([(socket.gethostname(), shared, own)])
    for rank, (host, is_shared, theirs) in enumerate(found):
        if not is_shared:
            raise UserError(f"--output_dir {args.output_dir}: not the same folder for rank {rank} on {host}; share it")
        for name, value in found[0][2].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"rank 0 has {name} {value}, rank {rank} on {host} has {theirs.get(name)}; start them alike"
                )


def train_and_finish(
    trainer, parser: Parser, ledgers: dict[str, Ledger], checkpoint: str | None, memory: PeakMemory
) -> None:
    """Train, evaluate, and leave the whole folder: weights, settings, ledger, metrics, curves, model card."""
    output_dir = Path(trainer.args.output_dir)
    names = hub_names(parser.settings)
    if trainer.is_world_process_zero():
        write_ledgers(output_dir / LEDGER, **ledgers)
        parser.save_settings(output_dir / "run_config.yaml")
        (output_dir / NAMES).write_text(json.dumps(names), encoding="utf-8")
        for name in ("metrics.json", "README.md"):  # of a run that goes on: they speak of its former end
            (output_dir / name).unlink(missing_ok=True)

    def card(folder: Path) -> str:
        state = trainer.state
        counts = {name: ledger.to_dict() for name, ledger in ledgers.items()}
        return model_card(folder, parser.settings, names, counts, state.log_history, state.global_step)

    publisher = Publisher(trainer.args) if trainer.args.push_to_hub else None
    if publisher:
        trainer.add_callback(publisher)
    trackers = add_trackers(trainer, parser)
    with trainer.attended():
        memory.start()
        result = trainer.train(resume_from_checkpoint=checkpoint)
        taken = memory.read()
        if not trainer.stopped_by:
            settings = evaluated_with(trainer, parser.settings)
            train = _trained(trainer, result.metrics["train_runtime"], taken)
            with suppress(Stopped):
                _finish_or_say(trainer, card, ledgers, train, taken, trackers, settings)
    if trainer.stopped_by:
        again = "" if checkpoint else " (leave out --overwrite_output_dir)" * trainer.args.overwrite_output_dir
        place = f"after step {trainer.state.global_step} of {trainer.state.max_steps}"
        say(
            f"stopped by {trainer.stopped_by} {place}; go on with the same command and --resume_from_checkpoint "
            f"true{again}"
        )
        if publisher and trainer.is_world_process_zero():
            leave_process_group()
            publisher.push_last(trainer.state.global_step)
        return
    if publisher and trainer.is_world_process_zero():
        leave_process_group()  # a long upload must not let the other processes' barrier run out of time
        publisher.finish()


def _trained(trainer, seconds: float, taken: dict | None) -> dict:
    """Say how the training went; its figures for metrics.json."""
    state, first, loss = trainer.state, trainer.first_step, report.mean_loss(trainer.state.log_history)
    mean = "" if loss is None else f", mean training loss {loss:.4f}"
    if state.global_step > first:
        minutes, rest = divmod(round(seconds), 60)
        since = f" from step {first}" if first else ""
        say(f"trained{since} to step {state.global_step} in {minutes}:{rest:02d}{mean}")
    else:
        say(f"all {state.global_step} steps were trained before{mean}")
    if line := describe(taken):
        say(line)
    figures = {"loss": loss, "tokens": state.num_input_tokens_seen, "epoch": state.epoch}
    return {**figures, "from_step": first, "seconds": round(seconds, 1), **trainer.figures()}


def _finish_or_say(trainer, *results) -> None:
    try:
        _finish(trainer, *results)
    except Exception as error:
        if not is_of_disk(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{trainer.args.output_dir}: the results could not be written ({reason}); the checkpoints are whole. Make "
            "room, then --resume_from_checkpoint true writes the rest without training again"
        ) from None


def _finish(
    trainer,
    card: Callable[[Path], str],
    ledgers: dict[str, Ledger],
    train: dict,
    taken: dict | None,
    trackers,
    settings: dict,
) -> None:
    output_dir, state = Path(trainer.args.output_dir), trainer.state
    if trainer.eval_dataset is not None and (
        state.global_step not in report.evaluations(state.log_history) or trainer.args.load_best_model_at_end
    ):
        trainer.evaluate()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    write_ledgers(output_dir / LEDGER, **ledgers)  # of a stream, known only now
    report.draw_curves(state.log_history, output_dir / "curves.png")
    by_step = report.evaluations(state.log_history)
    before, after = by_step.get(0) if state.global_step else None, by_step.get(state.global_step)
    trackers.finish(state.global_step, report.comparison(before, after) if after else None)
    metrics = {"steps": state.global_step, "train": train, "memory": taken, "before": before, "after": after}
    metrics["settings"] = settings
    (output_dir / "README.md").write_text(card(output_dir), encoding="utf-8")
    partial = output_dir / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    os.replace(partial, output_dir / "metrics.json")  # the last, for whoever waits for the run's end
    _print_report(output_dir, state.global_step, before, after)


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
        ("run_config.yaml", "the settings; --config with this file repeats the run"),
        (LEDGER, "what became of every row"),
        ("metrics.json", "all figures"),
        ("curves.png", "loss and scores over the steps"),
        ("predictions", "every answer or score of every evaluation; of pairs also a histogram"),
        ("README.md", "the model card"),
        ("swanlog", "swanlab's runs; `swanlab watch` with this folder shows them"),
        ("wandb", "wandb's runs; `wandb sync` uploads one"),
        ("tensorboard", "event files; `tensorboard --logdir` with this folder shows them"),
    ):
        if (output_dir / name).exists():
            say(f"  {name.ljust(17)} {what}")
