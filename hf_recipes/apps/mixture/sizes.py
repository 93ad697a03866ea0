"""Sizes of the sources of a mixture: as people write them, and of the files in a folder."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import COMPRESSED
from hf_recipes.data.files.sources import is_data
from hf_recipes.data.files.specs import source_name

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
SIZE = re.compile(
    rf"(?P<number>{NUMBER})\s?(?P<scale>[十百千]?[万亿]|万亿|千|[KMGTP](?:i?B)?|B)?"
    r"\s?(?P<word>tokens?|词元|bytes?|字节|documents?|docs?|rows?|条|篇|行)?",
    re.IGNORECASE,
)
# Why a line, item or file is not counted, or not as it stands: (English, Chinese).
REASONS = {
    "unreadable": (
        "not read as one name and one size; separate them by a comma, or quote them",
        "无法识别出名称和大小；请用逗号隔开，或加引号",
    ),
    "empty": ("no name, or its size is 0", "没有名称，或大小为 0"),
    "no file": (
        "no file: ls does not list the size of what is in a folder or behind a link; list its files, or use du -sh",
        "不是文件：ls 不显示文件夹或链接里有多少内容；请列出其中的文件，或用 du -sh",
    ),
    "another unit": (
        "its unit differs from the others', or is unclear (B: bytes or billions?); choose the unit above",
        "单位与其他大小不同，或不明确（B 是字节还是十亿？）；请在上面选择单位",
    ),
    "counted elsewhere": ("a sum of other lines, or part of another line", "是其他各行之和，或已包含在另一行中"),
    "added": ("added to the source of the same name", "已加到同名来源上"),
    "KiB": ("numbers from du without a unit are KiB", "du 的数字没有单位，按 KiB 计"),
    "compressed": ("compressed: smaller than its text", "压缩文件：小于其文本的大小"),
    "bytes of shards": (
        "counted in bytes, since other sources have no token count",
        "其他来源没有词元数，因此按字节计",
    ),
    "files only": (
        "has no folders: to pretrain.py it is one source by itself; give it as --train_file with /* after it",
        "没有子文件夹：对 pretrain.py 来说它自己是一个来源；请在 --train_file 中加上 /*",
    ),
    "no data": ("no data file", "没有数据文件"),
}
_UNITS = {"token": "tokens", "词元": "tokens", "byte": "bytes", "字节": "bytes"}
_HAN = {"十": 10, "百": 100, "千": 1e3, "万": 1e4, "亿": 1e8}


def unit_of(size: str) -> str | None:
    """The unit that a size is written with: documents of ``"3条"``, bytes of ``"5 GB"``, None of ``"1.2G"``."""
    match = SIZE.fullmatch(size)
    if match and match["word"]:
        return _UNITS.get(match["word"].lower().rstrip("s"), "documents")
    return "bytes" if match and (match["scale"] or "")[1:].lower().endswith("b") else None


def parse_size(text: str, unit: str) -> float | None:
    """``"1.2G"``, ``"3.4亿"`` or ``"1,234"`` in `unit`, or None if it is no size or has another unit.

    In bytes K, M, G are powers of 1,024 (as in ls and du) and KB, MB, GB powers of 1,000 (as GNU has them); of tokens
    and documents K, M, B (or G), T are powers of 1,000.
    """
    match = SIZE.fullmatch(text.strip())
    if not match or unit_of(text.strip()) not in (None, unit):
        return None
    number, scale = float(match["number"].replace(",", "")), (match["scale"] or "").lower()
    if scale and scale[0] in _HAN:
        number *= math.prod(_HAN[character] for character in scale)
    elif scale == "b" and unit == "bytes":
        number = number if number.is_integer() else math.inf  # 1.2B are billions of something, not bytes
    elif scale:
        base = 1024 if unit == "bytes" and scale[1:] != "b" else 1000
        number *= base ** {"k": 1, "m": 2, "g": 3, "b": 3, "t": 4, "p": 5}[scale[0]]
    return number if math.isfinite(number) else None


@dataclass
class Sizes:
    """Sources and their sizes in `unit` (tokens, bytes or documents).

    `warnings` are the lines or files that are not counted, or not as they stand: the line's number or None, its text,
    and a key of `REASONS`.
    """

    amounts: dict[str, float] = field(default_factory=dict)
    unit: str = "bytes"
    warnings: list[tuple[int | None, str, str]] = field(default_factory=list)

    def warn(self, line: int | None, text: str, reason: str) -> None:
        self.warnings.append((line, text, reason))

    def add(self, line: int | None, text: str, name: str, amount: float) -> None:
        """Count a source; sizes of the same name are added."""
        if not name or not amount:
            self.warn(line, text, "empty")
            return
        if name in self.amounts:
            self.warn(line, text, "added")
        self.amounts[name] = self.amounts.get(name, 0) + amount


def folder_sizes(folder: str) -> Sizes:
    """The sources in a folder, named as for pretraining: each sub-folder, and each loose data file.

    Folders of token shards are counted in tokens, by their ``manifest.json``, if all sources are such folders; else all
    sources are counted in bytes.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    sizes = Sizes()
    try:
        paths = [root.resolve()] if _manifest(root) else sorted(path for path in root.iterdir() if path.name[0] != ".")
        sources = [(path, _manifest(path), _data_files(path)) for path in paths]
        if all(manifest or not files for _, manifest, files in sources):
            sizes.unit = "tokens"
        for path, manifest, files in sources:
            if manifest:
                if sizes.unit == "bytes":
                    sizes.warn(None, path.name, "bytes of shards")
                sizes.add(None, path.name, source_name(path.name), manifest[sizes.unit])
            elif files:
                if any(file.name.endswith((*COMPRESSED, ".parquet")) for file in files):
                    sizes.warn(None, path.name, "compressed")
                sizes.add(None, path.name, source_name(path.name), sum(file.stat().st_size for file in files))
            else:
                sizes.warn(None, path.name, "no data")
        if sizes.amounts and not any(path.is_dir() for path in paths):
            sizes.warn(None, folder, "files only")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    return sizes


def _data_files(path: Path) -> list[Path]:
    files = path.rglob("*") if path.is_dir() else [path]
    return [file for file in files if is_data(file)]


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(value, dict) and all(isinstance(value.get(unit), int) for unit in ("tokens", "bytes"))
    return value if known else None


def tempered_shares(sizes: pd.Series, alpha: float = 1.0) -> pd.Series:
    """Shares in proportion to size ** `alpha`: 1 is each source as it is, 0 the same share for all."""
    weights = (sizes / sizes.max()) ** alpha
    return weights / weights.sum()
