"""The weights of a model's folder as they are stored."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from hf_recipes.core.errors import say
from hf_recipes.core.files import write_text
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.files.hub_data import cache_root

if TYPE_CHECKING:
    import torch

WEIGHTS = ("*.safetensors", "*.bin")
NOT_READ = {"training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.bin"}  # what else is *.bin
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LARGE = 1 << 30  # bytes of a file whose digest is kept


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


def file_digest(path: str | os.PathLike) -> str:
    """xxh3-128 of all of a file; of a large one it is kept in the cache by path, size and modification time."""
    path = os.path.realpath(path)
    stat = os.stat(path)
    if stat.st_size < LARGE:
        return _hash(path)
    kept = cache_root(None) / "hf_recipes_digests" / fingerprint(path, stat.st_size, stat.st_mtime_ns)
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    say(f"{path}: reading {stat.st_size / 1e9:.1f} GB for their digest (once)")
    digest = _hash(path)
    with suppress(OSError):  # a read-only cache costs time only
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, digest)
    return digest


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def digest(path: str | os.PathLike) -> str:
    """Of a model's folder: a digest of its weights, configuration and tokenizer; of a Hub id, the id."""
    folder, endings = Path(path), (".safetensors", ".bin", "config.json", ".jinja", ".model", ".tiktoken")
    if not folder.is_dir():
        return str(path)
    files = (file for file in folder.iterdir() if file.name.startswith("tokenizer") or file.name.endswith(endings))
    return fingerprint(*([file.name, file_digest(file)] for file in sorted(files) if file.is_file()))
