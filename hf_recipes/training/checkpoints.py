"""Which checkpoint a run can go on from."""

import json
import os
import re
import zipfile
from pathlib import Path

from hf_recipes.errors import UserError, say

_STEP = re.compile(r"checkpoint-(\d+)$")


def _is_whole(path: Path) -> bool:
    """Whether a file of a checkpoint has its end: torch's are zip archives, safetensors state their length."""
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix != ".safetensors":
        return path.stat().st_size > 0
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return False
        try:
            header = json.loads(file.read(size))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + size + max(ends, default=0)


def what_is_missing(checkpoint: str | os.PathLike) -> str | None:
    """The part of a checkpoint without which a resumed run would differ from an uninterrupted one, or None."""
    path = Path(checkpoint)
    sharded = any(path.glob("global_step*"))  # DeepSpeed keeps weights and optimizer in a folder of its own
    wanted = {"trainer_state.json": "trainer_state.json", "rng_state*.pth": "the random state (rng_state.pth)"}
    if not sharded:
        wanted |= {"optimizer.*": "optimizer.pt", "scheduler.pt": "scheduler.pt", "*.safetensors": "the weights"}
    for pattern, name in wanted.items():
        files = list(path.glob(pattern))
        if not files:
            return f"{name} is missing"
        for file in files:
            if not _is_whole(file):
                return f"{file.name} is cut short"
    return None


def find_checkpoint(output_dir: str, wanted: str | None) -> str | None:
    """The checkpoint to resume from: `wanted` is a path, ``"true"`` for the newest whole one in `output_dir`, or None.

    Raises:
        UserError: the named checkpoint is not there or not whole.
    """
    if wanted is None or wanted.lower() in ("false", ""):
        return None
    if wanted.lower() != "true":
        if not os.path.isdir(wanted):
            raise UserError(f"--resume_from_checkpoint {wanted}: no such folder")
        problem = what_is_missing(wanted)
        if problem:
            raise UserError(f"--resume_from_checkpoint {wanted}: {problem}, so the run could not go on as it was")
        return wanted
    found = [
        (int(match[1]), path) for path in Path(output_dir).glob("checkpoint-*") if (match := _STEP.match(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        problem = what_is_missing(path)
        if problem is None:
            say(f"going on from {path}")
            return str(path)
        say(f"{path} is left aside: {problem}")
    say(f"no checkpoint in {output_dir}: starting from the beginning")
    return None


def sync(folder: Path) -> None:
    """Have the disk hold every file below `folder` before anything relies on it."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
