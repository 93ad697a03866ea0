"""Code that resuming from a checkpoint would run: looked for before anything of it is loaded."""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from enum import Enum
from io import BytesIO
from pathlib import Path

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


def what_would_run(checkpoint: str | os.PathLike) -> str | None:
    """Code that resuming from `checkpoint` would run, as ``file: what``, or None.

    transformers unpickles its own files, those on top, with restrictions. DeepSpeed and distributed checkpoints
    unpickle files in the folders below, or parts of them, without any. So these are read here first, by unpicklers that
    build tensors and plain values and refuse everything else. Links and names that lead to other files are refused too.
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
        if not _is_metadata(path):
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            return None
        for value in _pickled_values(path):
            torch.load(value, map_location="cpu", weights_only=True)
        return None
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)|(?:global|function) ([\w.]+)", str(error))
        if match:
            return next(filter(None, match.groups()))
        problem = "unknown objects"
    except Exception as error:  # a crafted file can provoke any
        problem = f"cannot be read ({' '.join(str(error).split())[:100]})"
    return problem if path.suffix in (".pt", ".bin") or _is_metadata(path) else None  # else it is not unpickled


def _is_metadata(path: Path) -> bool:
    return path.name.endswith(".metadata")


def _pickled_values(path: Path) -> Iterator[BytesIO]:
    """The pickles that a distributed checkpoint has for what is no tensor: torch loads them without restrictions."""
    with open(path, "rb") as file:
        metadata = _MetadataUnpickler(file).load()
    for index, stored in metadata.storage_data.items():
        if type(metadata.state_dict_metadata[index.fqn]).__name__ != "BytesStorageMetadata":
            continue
        if stored.relative_path != Path(stored.relative_path).name or stored.transform_descriptors:
            raise ValueError(f"{index.fqn} is in {stored.relative_path}")
        with open(path.parent / stored.relative_path, "rb") as file:
            file.seek(stored.offset)
            yield BytesIO(file.read(stored.length))


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
