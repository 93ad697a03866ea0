"""A run's folder: refused, entered, and agreed on by all processes before anything is written to it."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_recipes.data.ledger import LEDGER
from hf_recipes.errors import UserError
from hf_recipes.parsing import Parser
from hf_recipes.training.checkpoints import find_checkpoint
from hf_recipes.training.public import NAMES
from hf_recipes.training.staging import STAGING as PUBLISHING
from hf_recipes.training.trackers import STATE as TRACKERS
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
    "samples",
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
