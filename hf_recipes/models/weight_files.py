"""The weights of a model's folder as they are stored."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WEIGHTS = ("*.safetensors", "*.bin")
NOT_READ = {"training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.bin"}  # what else is *.bin
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def local_folder(name: str, revision: str = "main", cache_dir: str | None = None) -> Path:
    """The folder of a model that was loaded: `name` itself, or the snapshot of a Hub id in the cache."""
    if os.path.isdir(name):
        return Path(name)
    from transformers.utils import cached_file

    config = cached_file(name, "config.json", revision=revision, cache_dir=cache_dir, local_files_only=True)
    return Path(config).parent


def stored_dtypes(folder: Path) -> dict[str, "torch.dtype"]:
    """The dtype of each floating-point tensor in a folder's safetensors files, by its name there."""
    import torch
    from safetensors import safe_open

    dtypes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if kind := FLOATS.get(file.get_slice(name).get_dtype()):
                    dtypes[name] = getattr(torch, kind)
    return dtypes


def commonest(dtypes: Mapping[str, "torch.dtype"]) -> "torch.dtype | None":
    return Counter(dtypes.values()).most_common(1)[0][0] if dtypes else None


def largest_shard(folder: Path) -> int | None:
    """Bytes of the largest of a folder's shards; None where all weights are in one file."""
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return max(sizes) if len(sizes) > 1 else None
