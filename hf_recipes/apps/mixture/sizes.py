"""How large the sources of a mixture are, by what lies in a folder, and what a share of each comes to."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import COMPRESSED
from hf_recipes.data.files.sources import is_data, source_name

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
SIZE = re.compile(
    rf"(?P<number>{NUMBER})\s?(?P<scale>万亿|[十百千]?[万亿]|千|[KMGTP](?:i?B)?|B)?"
    r"\s?(?P<word>tokens?|词元|bytes?|字节|documents?|docs?|rows?|条|篇|行)?",
    re.IGNORECASE,
)
_WORDS = {"token": "tokens", "词元": "tokens", "byte": "bytes", "字节": "bytes"}
_HAN = {"千": 1e3, "万": 1e4, "十万": 1e5, "百万": 1e6, "千万": 1e7, "亿": 1e8, "十亿": 1e9, "百亿": 1e10}
_HAN |= {"千亿": 1e11, "万亿": 1e12}
_POWERS = {"k": 1, "m": 2, "g": 3, "b": 3, "t": 4, "p": 5}


@dataclass
class Amount:
    """A size as it was written, before the unit of the whole is known."""

    number: float
    scale: str = ""
    unit: str | None = None

    @classmethod
    def of(cls, match: re.Match) -> "Amount":
        """From a match of `SIZE`."""
        scale, word = (match["scale"] or "").lower(), (match["word"] or "").lower().rstrip("s")
        unit = _WORDS.get(word, "documents") if word else "bytes" if scale[1:].endswith("b") else None
        return cls(float(match["number"].replace(",", "")), scale, unit)

    def count(self, unit: str) -> float | None:
        """The number of bytes, tokens or documents; None where there is no telling.

        In bytes K, M, G are powers of 1,024 (as in ls and du) and KB, MB, GB powers of 1,000 (as GNU has them); of
        tokens and documents K, M, B (or G), T are powers of 1,000.
        """
        scale, factor = self.scale, 1.0
        if scale in _HAN:
            factor = _HAN[scale]
        elif unit != "bytes" and scale:
            factor = 1e3 ** _POWERS[scale[0]]
        elif scale == "b":
            factor = 1.0 if self.number.is_integer() else math.inf  # 1.2B are billions of something, not bytes
        elif scale:
            factor = (1000.0 if scale[1:] == "b" else 1024.0) ** _POWERS[scale[0]]
        count = self.number * factor
        return count if math.isfinite(count) else None


def parse_size(text: str, unit: str) -> float | None:
    """``"1.2G"``, ``"3.4亿"`` or ``"1,234"`` in `unit`, or None where it is no size or says another unit."""
    match = SIZE.fullmatch(text.strip())
    amount = Amount.of(match) if match else None
    return amount.count(unit) if amount and amount.unit in (None, unit) else None


@dataclass(frozen=True)
class Remark:
    """A line, item or file that was not counted or not as it stands, and the key of the reason."""

    line: int | None
    text: str
    reason: str


@dataclass
class Sizes:
    """Sources and their sizes in `unit` (tokens, bytes or documents).

    `problems` are what could not be read and is not counted; `notes` say how other lines or files were taken.
    """

    amounts: dict[str, float] = field(default_factory=dict)
    unit: str = "bytes"
    problems: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    def add(self, line: int | None, text: str, name: str, amount: float) -> None:
        """Count a source; one that is there already gets the sum."""
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, which no file could hold
            self.problems.append(Remark(line, ascii(name), "no name"))
            return
        if not name or not amount:
            self.problems.append(Remark(line, text, "empty" if name else "no name"))
        elif name in self.amounts:
            self.notes.append(Remark(line, text, "added"))
            self.amounts[name] += amount
        else:
            self.amounts[name] = amount


def folder_sizes(folder: str) -> Sizes:
    """The sources in a folder, named as for pretraining: each sub-folder, and each loose data file.

    A folder of token shards has its tokens in ``manifest.json`` (its bytes are taken where other sources have no
    tokens); the others have the bytes of their data files.

    Raises:
        UserError: no such folder, or it cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    sizes = Sizes()
    try:
        paths = [root.resolve()] if _manifest(root) else sorted(path for path in root.iterdir() if path.name[0] != ".")
        found = [(path, _manifest(path), _data_files(path)) for path in paths]
        if all(manifest or not files for _, manifest, files in found):
            sizes.unit = "tokens"
        for path, manifest, files in found:
            if manifest:
                if sizes.unit == "bytes":
                    sizes.notes.append(Remark(None, path.name, "bytes of shards"))
                sizes.add(None, path.name, source_name(path.name), manifest[sizes.unit])
            elif files:
                if any(file.name.endswith((*COMPRESSED, ".parquet")) for file in files):
                    sizes.notes.append(Remark(None, path.name, "compressed"))
                sizes.add(None, path.name, source_name(path.name), sum(file.stat().st_size for file in files))
            else:
                sizes.notes.append(Remark(None, path.name, "no data"))
        if sizes.amounts and not any(path.is_dir() for path in paths):
            sizes.notes.append(Remark(None, folder, "files only"))
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


def tempered_shares(amounts: Mapping[str, float], alpha: float = 1.0) -> dict[str, float]:
    """Shares in proportion to size ** `alpha`: 1 is each source as it is, 0 the same share for all."""
    largest = max(amounts.values())
    weights = {name: (amount / largest) ** alpha for name, amount in amounts.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


@dataclass(frozen=True)
class Part:
    """A source in a mixture: its size and its part of all sizes, and what its share of the training comes to."""

    name: str
    size: float
    natural: float
    share: float
    sampled: float
    epochs: float


def plan(amounts: Mapping[str, float], shares: Mapping[str, float], budget: float) -> list[Part]:
    """What each source's share of `budget` (in the unit of the sizes) comes to."""
    natural = tempered_shares(amounts)
    return [
        Part(name, size, natural[name], shares[name], shares[name] * budget, shares[name] * budget / size)
        for name, size in amounts.items()
    ]
