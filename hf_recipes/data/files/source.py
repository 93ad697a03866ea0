"""A source of rows, and a row of it as it is read, with its file and line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.dataset_info import Layout
from hf_recipes.data.files.encodings import encoding_name
from hf_recipes.data.files.file_io import MAX_ROW_BYTES

BEGIN = (0, 0)  # lines (rows where there are no lines) and decompressed bytes before a row


@dataclass(frozen=True)
class Draw:
    """`count` of the `rows` of several files together, of which a file has `size` after the `first` ones before it.

    All rows, as often as `count` holds them, and of the rest a sample.
    """

    key: int
    rows: int
    count: int
    first: int
    size: int

    def sample(self) -> np.ndarray:
        """The sorted indices of the file's rows that are in the sample."""
        sample = np.random.default_rng(self.key).permutation(self.rows)[: self.count % self.rows] - self.first
        return np.sort(sample[(sample >= 0) & (sample < self.size)])

    @property
    def sampled(self) -> int:
        """Rows of the file that are read."""
        return self.count // self.rows * self.size + len(self.sample())


@dataclass(frozen=True)
class Source:
    """A file, or a split of a hub's data set, with the digest of what is read of it (so that no cache can go stale).

    Attributes:
        path: of the file; of a data set on a hub its name and subset.
        txt: what a row of a .txt file is; see `find_sources`.
        name: what the source is called that it belongs to, in mixtures.
        note: what is to be said of how it is read.
        draw: the rows that are read; None for each of them once.
        layout: how its rows become ours.
    """

    path: str
    digest: str
    encoding: str = "utf-8"
    split: str | None = None
    cache_dir: str | None = None
    txt: str = "lines"
    name: str = ""
    note: str = ""
    draw: Draw | None = None
    layout: Layout | None = None

    @property
    def notes(self) -> list[str]:
        """What is to be said of how it is read: separator, encoding, names of columns, sample."""
        encoding = "" if self.encoding.startswith("utf-8") else f"{encoding_name(self.encoding)} text"
        sampled = f"{self.draw.sampled:,} rows sampled from {self.draw.size:,}" if self.draw else ""
        mapped = "columns as dataset_info.json maps them" if self.layout else ""
        return [note for note in (self.note, encoding, mapped, sampled) if note]


@dataclass(slots=True)
class Record:
    """One row at ``file:line``: its `value`, or the `problem` with it. The next row starts at `after`."""

    location: str
    value: dict[str, Any] | None = None
    problem: str | None = None
    after: tuple[int, int] = BEGIN


def numbered(rows: Iterator[Record], start: tuple[int, int]) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        if number > start[0]:
            row.after = (number, 0)
            yield row


def too_long(location: str) -> UserError:
    return UserError(
        f"{location}: this row is longer than {MAX_ROW_BYTES >> 20} MiB; split it or take it out, and of one "
        "object that holds rows write each on a line"
    )
