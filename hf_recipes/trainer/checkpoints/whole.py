"""What proves a checkpoint on disk whole, and which ones may be deleted."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from hf_recipes.core.files import write_json

MANIFEST = "files.json"

BEGUN_WITH = "run.json"  # in a checkpoint

_STEP = re.compile(r"checkpoint-(\d+)$")


def sync(folder: Path, files: bool = True) -> None:
    """Have the disk hold `folder`, and with `files` everything below it, before anything relies on it."""
    for path in [*(folder.rglob("*") if files else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_manifest(checkpoint: Path, world_size: int) -> None:
    """List the files of a checkpoint with their sizes, by which a lost or cut one is noticed."""
    sizes = {str(p.relative_to(checkpoint)): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
    write_json(checkpoint / MANIFEST, {"world_size": world_size, "files": dict(sorted(sizes.items()))}, indent=1)


def checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    matches = ((_STEP.match(path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def rotate(output_dir: Path, step: int, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints over `limit`, neither that of `step`, just written, nor the best.

    Later ones are of a run that this one did not resume (they are not whole); they do not count.
    """
    written = [path for at, path in checkpoints(output_dir) if at <= step]
    protected = {written[-1], Path(best)} if best else {written[-1]}
    surplus = len(written) - limit if limit else 0
    for path in written:
        if surplus > 0 and path not in protected:
            shutil.rmtree(path, ignore_errors=True)
            surplus -= 1


def _is_whole(path: Path) -> bool:
    """Whether a file of a checkpoint has its end: torch's are zip archives, safetensors state their length."""
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix == ".json":
        try:
            return bool(json.loads(path.read_bytes()))
        except ValueError:
            return False
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
    names = {"trainer_state.json": "trainer_state.json", "rng_state*.pth": "the random state (rng_state.pth)"}
    if any(path.glob("global_step*")):
        names["latest"] = "latest"
    if not is_sharded(path):
        config = "adapter_config.json" if (path / "adapter_model.safetensors").exists() else "config.json"
        names |= {config: config, "optimizer.*": "optimizer.pt", "scheduler.pt": "scheduler.pt"}
        names |= {"*.safetensors": "the weights"}
    for pattern, name in names.items():
        if not any(path.glob(pattern)):
            return f"{name} is missing"
    sizes = _manifest(path)
    for name, size in sizes.get("files", {}).items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} is cut short"
    cut = next((file.name for pattern in names for file in path.glob(pattern) if not _is_whole(file)), None)
    return f"{cut} is cut short" if cut else None


def is_sharded(path: Path) -> bool:
    """Whether DeepSpeed or FSDP wrote it: weights and optimizer in folders, with a file for each process."""
    return any(path.glob("global_step*")) or any(path.glob("pytorch_model_fsdp*"))


def _manifest(path: Path) -> dict:
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
