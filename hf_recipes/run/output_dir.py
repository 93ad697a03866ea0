"""The output folder of a run: what is refused, what the run claims, and whether all processes share it."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.core.files import writing
from hf_recipes.core.folders import RECORD, OutputFolder
from hf_recipes.core.ledger import HELD_OUT, LEDGER
from hf_recipes.publishing.collect_files import UPLOAD
from hf_recipes.publishing.redact import NAMES
from hf_recipes.trainer.checkpoints.save import SAVING
from hf_recipes.trainer.reports.progress import LOG
from hf_recipes.trainer.reports.trackers import STATE as TRACKERS

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_recipes.run.arguments import RunArguments

T = TypeVar("T")
SHARING = 20.0  # seconds in which the other nodes see what one of them writes
ENDING = 30.0  # seconds in which a process that torchrun has ended lets go of the folder
# What may be another path on each node.
LOCAL = {"model_name_or_path", "peft_path", "output_dir", "cache_dir", "train_file", "dataset_dir", "validation_file"}
SETTINGS, METRICS, CARD = "run_config.yaml", "metrics.json", "README.md"
# Patterns of what a run writes: while it trains, and at its end. Trackers' own folders are kept over runs.
TRAINING = (
    *map(re.escape, (SETTINGS, LEDGER, HELD_OUT, NAMES, TRACKERS, LOG, "curves.png")),
    rf"{re.escape(SAVING)}/.*",
    rf"{re.escape(UPLOAD)}.*",
    r"checkpoint-\d+/.*",
    r"predictions/(.+/)?(step-\d+\.jsonl|differences\.png)",
    r"tensorboard/.*",
)
SAMPLES = r"samples/step-\d+\.jsonl"
END = (re.escape(METRICS), re.escape(CARD))
TOKENIZER = (r"tokenizer(_config)?\.json", r"chat_template\.jinja", r"special_tokens_map\.json")
ADAPTER = (r"adapter_config\.json", r"adapter_model(-.*)?\.safetensors")
MODEL = (r"(generation_)?config\.json", r"model(-.*)?\.safetensors(\.index\.json)?")
ALL = (*TRAINING, SAMPLES, *END, *TOKENIZER, *ADAPTER, *MODEL)


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


def open_folder(args: "RunArguments") -> OutputFolder:
    return OutputFolder(args.output_dir, "training", former=ALL)


def _launch() -> str:
    """What the processes of one torchrun share, its restarts included, and no other launch has."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return run if run != "none" else f"{socket.gethostname()}:{os.getppid()}"


def is_restart(folder: OutputFolder) -> bool:
    """Whether torchrun --max_restarts began again what this launch had already begun in this folder."""
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    return again and folder.is_mine and folder.record["launch"] == _launch()


def while_training(args: "RunArguments") -> tuple[str, ...]:
    """Patterns of what this run writes before its end."""
    return (*TRAINING, SAMPLES) if hasattr(args, "num_generations") else TRAINING


def check_sources(path: Path, *sources: str | None) -> None:
    """Refuse a folder that has the model or the adapter in it that the run starts from."""
    for source in filter(None, sources):
        if os.path.isdir(source) and path.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UserError(
                f"--output_dir {path}: the run would write over {source}, which it starts from; name another"
            )


def check_output_dir(folder: OutputFolder, args: "RunArguments", use_lora: bool) -> None:
    """Refuse a folder with files in it unless a flag says what to do with them; nothing is changed.

    A run writes over and deletes only files that a former run recorded as its own.

    Args:
        use_lora: an adapter is saved, not a model.
    """
    path = folder.path
    wanted = args.resume_from_checkpoint
    if wanted and wanted.lower() != "true" and not os.path.isdir(wanted):
        raise UserError(f"--resume_from_checkpoint {wanted}: no such folder")
    if not path.is_dir() or folder.is_empty:
        return
    if not (args.overwrite_output_dir or wanted or is_restart(folder)):
        raise UserError(
            f"--output_dir {path}: the folder is not empty; resume with --resume_from_checkpoint true, start over with "
            "--overwrite_output_dir, or choose another folder"
        )
    if args.overwrite_output_dir and not folder.is_mine:
        raise UserError(
            f"--output_dir {path}: the folder is not empty and holds no record of a run, so --overwrite_output_dir "
            "deletes nothing in it; choose another folder, or empty it yourself"
        )
    if args.overwrite_output_dir:
        folder.check_links()
    elif not folder.is_mine and (path / SETTINGS).is_file() and any(path.glob("checkpoint-*/trainer_state.json")):
        folder.adopt()  # a copy of a run's folder, without the record
    others = folder.others((*while_training(args), *END, *TOKENIZER, *(ADAPTER if use_lora else MODEL)))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"--output_dir {path}: no run recorded {others[0]}{more} as its own, and this one would write there; move "
            "that away, or choose another folder"
        )


def enter_output_dir(folder: OutputFolder, args: "RunArguments") -> None:
    """Record what the run is going to write; with `overwrite_output_dir` delete what a former run recorded before."""
    with writing(f"--output_dir {folder.path}"):
        if args.overwrite_output_dir and folder.is_mine and not is_restart(folder):
            folder.clear()
        folder.claim(while_training(args), _launch())


def check_agreement(args: "TrainingArguments", parser: Parser, **sizes: int) -> None:
    """Refuse processes that were started with different settings or data, or on nodes that do not share the folder.

    Args:
        sizes: of the data, by what they count.
    """
    if args.world_size == 1:
        return
    from accelerate.utils import broadcast_object_list, gather_object

    path = Path(args.output_dir) / RECORD
    token = [path.read_text(encoding="utf-8") if args.process_index == 0 else None]
    broadcast_object_list(token)
    end = time.monotonic() + SHARING
    while not (shared := path.is_file() and path.read_text(encoding="utf-8") == token[0]) and time.monotonic() < end:
        time.sleep(0.2)
    settings = {f"--{name}": value for name, value in parser.recorded().items() if name not in LOCAL} | sizes
    processes = gather_object([(socket.gethostname(), shared, settings)])
    for rank, (host, is_shared, theirs) in enumerate(processes):
        if not is_shared:
            raise UserError(f"--output_dir {args.output_dir}: not the same folder for rank {rank} on {host}; share it")
        for name, value in processes[0][2].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"rank 0 has {name} {value}, rank {rank} on {host} has {theirs.get(name)}; start them alike"
                )
