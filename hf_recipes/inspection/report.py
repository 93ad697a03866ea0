"""What an inspection found, as plain values, which the terminal and the page show alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_recipes.corpus.cleaning import CONTROLS

Cell = str | int | None
WIDTH = 160  # characters of a text in a table


@dataclass
class Table:
    """Rows of texts and numbers under `head`; `note` is read below them."""

    title: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""


@dataclass
class Histogram:
    """How many rows have from `edges[i]` to below `edges[i + 1]` tokens; `marks` are budgets."""

    title: str
    edges: list[int]
    counts: list[int]
    marks: dict[str, int]


@dataclass
class Piece:
    """The text of one token, or of the few that make up a character; without `learned`, of `tokens` left out."""

    text: str
    tokens: int
    labelled: bool | None


@dataclass
class Segment:
    """Tokens that see each other; the next ones in the same strip do not see these."""

    location: str
    pieces: list[Piece]


@dataclass
class Strip:
    """What goes through the model as one sequence."""

    name: str
    segments: list[Segment]


@dataclass
class Example:
    """One row, pack or block, its `fate` in the ledger, and what else there is to say of it."""

    location: str
    status: str
    facts: list[str]
    strips: list[Strip]


@dataclass
class Examples:
    title: str
    note: str
    rows: list[Example]


@dataclass
class Section:
    title: str
    blocks: list[Table | Histogram | Examples]


@dataclass
class Report:
    """All of an inspection; `warnings` are what would stop the run, or spoil it."""

    title: str
    facts: list[tuple[str, str]]
    warnings: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def as_text(cell: Cell) -> str:
    return "–" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def share(part: int, whole: int) -> str:
    """In percent; what is not nothing is not shown as nothing."""
    if not whole or not part:
        return "0 %" if whole else "–"
    return f"{part / whole:.1%}".replace("%", " %") if part >= 0.001 * whole else "< 0.1 %"


def visible(text: str) -> str:
    """`text` with control characters, which could also steer a terminal, and invisible ones as escapes."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r", "\\r"))


def clip(text: str, width: int = WIDTH) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return visible(line if len(line) <= width and len(text) <= 4 * width else line[:width] + "…")


def counted(title: str, of: str, counts: Mapping[str, int], whole: int, note: str = "") -> Table:
    """A table of counts with their shares of `whole`."""
    return Table(title, [of, "rows", "share"], [[name, n, share(n, whole)] for name, n in counts.items()], note)
