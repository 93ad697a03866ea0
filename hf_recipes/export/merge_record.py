"""A merged model's record, merge.json: what was merged, and whether a folder holds the result unchanged."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, write_json
from hf_recipes.hub.clients import source_of
from hf_recipes.models.adapters.saved_adapter import MERGE_RECORD
from hf_recipes.models.weight_files import NOT_READ, WEIGHTS

# The files of a base and of an adapter that a merge depends on.
SOURCES = (
    *(*WEIGHTS, "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", "*.tiktoken"),
)


def shown_name(name: str) -> str:
    """The Hub id of a model or adapter, where it is one or was downloaded by it; else only the name of its folder."""
    if not os.path.exists(name):
        return name
    return (source_of(name) or ("", Path(name).resolve().name))[1]


def file_hashes(folder: Path, patterns: Iterable[str] = SOURCES) -> dict[str, str]:
    """SHA-256 by file name."""
    names = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()} - NOT_READ
    hashes = {}
    for name in sorted(names):
        with open(folder / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def training_quantization(adapter: Path) -> str | None:
    """How the base was quantized when the adapter was trained, by the run's settings; None where it was not."""
    for folder in (adapter, adapter.parent):
        path = folder / "run_config.yaml"
        if path.is_file():
            try:
                settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            except (OSError, ValueError, yaml.YAMLError):
                return None
            texts = {"load_in_4bit": "4 bits", "load_in_8bit": "8 bits", "bnb_config": "bitsandbytes"}
            return next((text for key, text in texts.items() if settings.get(key)), None)
    return None


def check_base(folder: Path, paths: Sequence[str], adapters: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a base that one of the adapters was merged into already."""
    weights = "adapter_model.safetensors"
    merged = {adapter["files"].get(weights) for adapter in (read_record(folder) or {}).get("adapters", ())}
    for path, adapter in zip(paths, adapters, strict=True):
        if adapter["files"][weights] in merged:
            raise UserError(f"--model_name_or_path {folder}: {path} is merged into this model already; name its base")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The merge.json in `folder`, or None where it holds none that can be read."""
    try:
        record = json.loads((folder / MERGE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_json(folder / MERGE_RECORD, record)


def is_done(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the requested merge, unchanged. Anything else in it is refused."""
    if not folder.exists() or (folder.is_dir() and is_empty(folder)):
        return False
    other = "nothing is overwritten; name another with --output_dir"
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        what = "the folder is not empty and holds no merged model" if folder.is_dir() else "this is a file"
        raise UserError(f"--output_dir {folder}: {what}; {other}")
    if record.get("request") != request:
        former = record.get("request") or {}
        differs = [key for key in request if former.get(key) != request[key]]
        raise UserError(f"--output_dir {folder}: holds another merge (other {', '.join(differs)}); {other}")
    files = record.get("files", {})
    if damaged := [name for name, value in files.items() if file_hashes(folder, [name]).get(name) != value]:
        raise UserError(f"--output_dir {folder}: this merge was changed after it was written ({damaged[0]}); {other}")
    say(f"{folder}: this merge is done already; nothing is changed")
    return True
