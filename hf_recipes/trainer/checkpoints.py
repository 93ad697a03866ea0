"""Checkpoints on disk: which one a run can resume from, what proves it whole, and which may be deleted."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import write_json

MANIFEST = "files.json"
_STEP = re.compile(r"checkpoint-(\d+)$")
_METADATA_TYPES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
}


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


def _checkpoints(output_dir: str | os.PathLike) -> list[tuple[int, Path]]:
    matches = ((_STEP.match(path.name), path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def rotate(output_dir: Path, step: int, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints over `limit`, neither that of `step`, just written, nor the best.

    Later ones are of a run that this one did not resume (they are not whole); they do not count.
    """
    written = [path for at, path in _checkpoints(output_dir) if at <= step]
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
    if not _is_sharded(path):
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


def _is_sharded(path: Path) -> bool:
    """Whether DeepSpeed or FSDP wrote it: weights and optimizer in folders, with a file for each process."""
    return any(path.glob("global_step*")) or any(path.glob("pytorch_model_fsdp*"))


def _manifest(path: Path) -> dict:
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _check_width(checkpoint: str | os.PathLike, world_size: int, inexact: bool) -> None:
    path = Path(checkpoint)
    wrote = len(list(path.glob("rng_state*.pth")))
    if wrote == world_size:
        return
    if _is_sharded(path):
        raise UserError(f"{path}: it is sharded over {wrote} processes, and this run has {world_size}; start {wrote}")
    if not inexact:
        raise UserError(
            f"{path} was written by {wrote} processes, and this run has {world_size}: it can go on with the same rows, "
            f"but not with the same random numbers (dropout). Start {wrote} processes, or allow that with "
            "--inexact_resume"
        )


def what_would_run(checkpoint: str | os.PathLike) -> str | None:
    """Code that resuming from `checkpoint` would run, as ``file: what``, or None.

    transformers unpickles its own files, those on top, with restrictions. DeepSpeed and distributed checkpoints
    unpickle files in the folders below without any. So these files are read here first, by unpicklers that build
    tensors and plain values and refuse everything else. Links and names that lead to other files are refused too.
    """
    import torch

    folders = [Path(checkpoint), *_best_of(Path(checkpoint))]
    with torch.serialization.safe_globals(_deepspeed_types()):
        for folder in folders:
            if outside := _leads_outside(folder):
                return outside
            for path in folder.rglob("*"):
                if path.parent != folder and path.is_file() and (code := _code_in(path)):
                    return f"{path.relative_to(folder)}: {code}"
    return None


def _best_of(checkpoint: Path) -> list[Path]:
    """The best checkpoint so far, which a resumed run may load at its end."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_bytes())
        best = Path(state["best_model_checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [best] if best.is_dir() else []


def _leads_outside(checkpoint: Path) -> str | None:
    """A link or a name in a checkpoint by which a file outside of it would be loaded."""
    inside = os.path.realpath(checkpoint)
    for path in checkpoint.rglob("*"):
        if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(inside)):
            return f"{path.relative_to(checkpoint)} is a link to {os.readlink(path)}"
    folders = {path.name for path in checkpoint.iterdir() if path.is_dir()}
    for name in ("latest", "latest_universal"):  # DeepSpeed joins what they say to the checkpoint's path
        if (checkpoint / name).is_file():
            wanted = (checkpoint / name).read_text(encoding="utf-8", errors="replace").strip()
            if wanted not in folders:
                return f"{name} names {wanted[:100]!r}, which is no folder in it"
    return None


def _code_in(path: Path) -> str | None:
    """What a file would run when it is unpickled without restrictions."""
    import torch

    try:
        if path.name == ".metadata":
            with open(path, "rb") as file:
                _MetadataUnpickler(file).load()
        else:
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return None
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)|(?:global|function) ([\w.]+)", str(error))
        if match:
            return next(filter(None, match.groups()))
        problem = "unknown objects"
    except Exception as error:  # a crafted file can provoke any
        problem = f"cannot be read ({' '.join(str(error).split())[:100]})"
    return problem if path.suffix in (".pt", ".bin") or path.name == ".metadata" else None  # else it is not unpickled


class _MetadataUnpickler(pickle.Unpickler):
    """For the ``.metadata`` of a distributed checkpoint: its own types and those of torch's numbers."""

    def find_class(self, module: str, name: str):
        import torch

        if name not in _METADATA_TYPES.get(module, ()) and not (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            raise pickle.UnpicklingError(f"global {module}.{name}")
        return super().find_class(module, name)


def _member(kind: type, name: str):
    """What `getattr` does in the pickle of an enum's member (Python 3.11.0 to 3.11.3), and nothing more."""
    if not issubclass(kind, Enum):
        raise pickle.UnpicklingError("global getattr")
    return kind[name]


def _deepspeed_types() -> list:
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    members = [(_member, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, *members]


def find_checkpoint(
    output_dir: str, wanted: str | None, *, world_size: int = 1, inexact: bool = False, trust: bool = False
) -> str | None:
    """The checkpoint to resume from; `wanted` is a path, ``"true"`` (the newest whole one in `output_dir`) or None."""
    if wanted is None:
        return None
    chosen = wanted
    if wanted.lower() != "true":
        if not os.path.isdir(wanted):
            raise UserError(f"--resume_from_checkpoint {wanted}: no such folder")
        problem = what_is_missing(wanted)
        if problem:
            raise UserError(f"--resume_from_checkpoint {wanted}: {problem}, so the run could not go on as it was")
    else:
        newest = newest_whole(output_dir, say)
        if newest is None:
            say(f"no checkpoint in {output_dir}: starting from the beginning")
            return None
        chosen = str(newest)
    _check_width(chosen, world_size, inexact)
    code = None if trust else what_would_run(chosen)
    if code:
        raise UserError(
            f"{chosen}: loading it would run code from its files ({code}); if you know who wrote it, allow that with "
            "--trust_checkpoint"
        )
    say(f"going on from {chosen}")
    return chosen


def newest_whole(output_dir: str | os.PathLike, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest checkpoint that a run can resume from; `report` is called with why a newer one cannot be."""
    for _, path in reversed(_checkpoints(output_dir)):
        problem = what_is_missing(path)
        if problem is None:
            return path
        report(f"{path} is left aside: {problem}")
    return None


BEGUN_WITH = "run.json"  # in a checkpoint
