"""A merged model's folder: what is kept of base and adapters, its record (merge.json) and its card."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import is_empty, write_json
from hf_recipes.hub.clients import source_of
from hf_recipes.models.checks.weight_files import NOT_READ, WEIGHTS
from hf_recipes.models.lora import MERGE_RECORD

if TYPE_CHECKING:
    pass

# What a merge depends on, of a base and of an adapter.
SOURCES = (
    *(*WEIGHTS, "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", "*.tiktoken"),
)


def shown_name(name: str) -> str:
    """What others may see of a path or a Hub id: the id, where it is one or a download's record has it."""
    if not os.path.exists(name):
        return name
    return (source_of(name) or ("", Path(name).resolve().name))[1]


def file_hashes(folder: Path, patterns: Iterable[str] = SOURCES) -> dict[str, str]:
    """SHA-256 by file name."""
    names = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()} - NOT_READ
    found = {}
    for name in sorted(names):
        with open(folder / name, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def training_quantization(adapter: Path) -> str | None:
    """How the base was quantized when the adapter was trained, as the run's settings say, or None."""
    for folder in (adapter, adapter.parent):
        path = folder / "run_config.yaml"
        if path.is_file():
            try:
                settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            except (OSError, ValueError, yaml.YAMLError):
                return None
            named = {"load_in_4bit": "4 bits", "load_in_8bit": "8 bits", "bnb_config": "bitsandbytes"}
            return next((text for key, text in named.items() if settings.get(key)), None)
    return None


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
    """Whether `folder` holds what `request` asks for, as it was written.

    Raises:
        UserError: it holds anything else, which is left as it is.
    """
    if not folder.exists() or (folder.is_dir() and is_empty(folder)):
        return False
    other = "nothing is overwritten; name another with --output_dir"
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        what = "the folder is not empty and holds no merged model" if folder.is_dir() else "this is a file"
        raise UserError(f"--output_dir {folder}: {what}; {other}")
    if record.get("request") != request:
        there = record.get("request") or {}
        differs = [key for key in request if there.get(key) != request[key]]
        raise UserError(f"--output_dir {folder}: holds another merge (other {', '.join(differs)}); {other}")
    files = record.get("files", {})
    if damaged := [name for name, value in files.items() if file_hashes(folder, [name]).get(name) != value]:
        raise UserError(f"--output_dir {folder}: this merge was changed after it was written ({damaged[0]}); {other}")
    return True


def card(record: Mapping[str, Any], title: str, is_reward: bool) -> str:
    """README.md in English and Chinese; a push writes the repository's name in place of "FOLDER"."""
    base, parity = record["base"]["name"], record["parity"]
    adapters = ", ".join(
        f"`{adapter['name']}`" + f" × {adapter['weight']:g}" * (adapter["weight"] != 1)
        for adapter in record["adapters"]
    )
    kind = f"AutoModelFor{'SequenceClassification' if is_reward else 'CausalLM'}"
    header = ["---", "library_name: transformers", "language: zh"]
    header += [f"base_model: {base}"] if "/" in base else []
    task = "text-classification" if is_reward else "text-generation"
    header += [f"pipeline_tag: {task}", "tags: [hf_recipes, merge, lora]", "---"]
    trained = record["quantized_in_training"]
    quantized = (
        f"The adapter was trained on the base in {trained}; here it is in the base's full weights.\n",
        f"适配器训练时基座为 {trained}；这里并入的是基座的全精度权重。\n",
    )
    checked = (
        f"Weights in {record['dtype']}. Against base and adapter, computed in float32, logits differ by at most "
        f"{parity['logits']:.2g}",
        f"权重为 {record['dtype']}。以 float32 计算，与“基座加适配器”相比，logits 最多相差 {parity['logits']:.2g}",
    )
    if not is_reward:
        same = f"{parity['greedy_tokens']['same']} / {parity['greedy_tokens']['of']}"
        checked = (
            f"{checked[0]}, and {same} greedy tokens are the same",
            f"{checked[1]}，贪心解码的词元 {same} 相同",
        )
    lines = [
        *header,
        f"\n# {title}\n",
        f"`{base}` with the LoRA adapter {adapters} merged into it, by hf_recipes.\n",
        f"由 hf_recipes 将 LoRA 适配器 {adapters} 并入 `{base}` 而成。\n",
        "```python",
        f'from transformers import {kind}, AutoTokenizer\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'model = {kind}.from_pretrained("FOLDER")',
        "```\n",
        *(quantized if trained else ()),
        f"{checked[0]}.\n",
        f"{checked[1]}。",
    ]
    return "\n".join(lines) + "\n"
