"""A report as plain values, which the terminal and the page render alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, ClassVar

from hf_recipes.core.language import Language
from hf_recipes.corpus.cleaning import CONTROLS
from hf_recipes.evaluation.reports.phrases import Phrase, translated

WIDTH = 160  # characters of a text in a table
LINKED = ("table", "tabs", "examples", "answers")  # kinds of blocks with a heading of their own
LABELS = ("title", "header", "note")  # of these blocks, which are in English also where they are no phrases


class Number(str):
    """A formatted number: aligned to the right, as integers are."""


Cell = str | int | None


@dataclass
class Table:
    """Rows of texts and numbers under `header`, and a note below them.

    `verdicts` colours rows on the page: one of "better", "worse" or "" for each row, or none at all. `findings` are
    what the top of the page says of the table.
    """

    kind: ClassVar = "table"
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""
    verdicts: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


@dataclass
class Histogram:
    """How many rows have from `edges[i]` to below `edges[i + 1]` tokens; `budgets` are numbers of tokens by name."""

    kind: ClassVar = "histogram"
    title: str
    edges: list[int]
    counts: list[int]
    budgets: dict[str, int]
    lengths: list[list[int]] = field(default_factory=list)  # each that occurs, and how many rows have it


@dataclass
class Picture:
    """A PNG; `legend` is what the names in it mean, where no font could write them."""

    kind: ClassVar = "picture"
    title: str
    png: bytes
    legend: str = ""


@dataclass
class Tabs:
    """Pictures of the same kind, of which the page shows one at a time."""

    kind: ClassVar = "tabs"
    title: str
    pictures: list[Picture]


@dataclass
class TokenSpan:
    """The text of one token, or of the few that make up a character; of omitted `tokens`, `labelled` is None."""

    text: str
    tokens: int
    labelled: bool | None


@dataclass
class Document:
    """Tokens that attend to each other; other documents of the same sequence are masked from them."""

    location: str
    spans: list[TokenSpan]


@dataclass
class TokenSequence:
    """What goes through the model as one row of a batch."""

    name: str
    documents: list[Document]


@dataclass
class Example:
    """One row, pack or block, its status in the ledger, and facts about it."""

    location: str
    status: str
    facts: list[str]
    sequences: list[TokenSequence]
    turns: list[list[str]] = field(default_factory=list)  # role and text of each turn of the row


@dataclass
class Examples:
    kind: ClassVar = "examples"
    title: str
    note: str
    rows: list[Example]


@dataclass
class Answer:
    """An evaluated row: its score, and its texts by name."""

    location: str
    status: str
    texts: list[tuple[str, str]]


@dataclass
class Answers:
    kind: ClassVar = "answers"
    title: str
    note: str
    rows: list[Answer]


Block = Table | Histogram | Picture | Tabs | Examples | Answers


@dataclass
class Section:
    title: str
    blocks: list[Block]


@dataclass
class Report:
    """`warnings` are what would stop a run, or spoil it; `settings` is a text to unfold at the end of the page.

    `verdict` is the sentence that the page begins with, and `tone` its colour: "good", "bad" or none.
    """

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    settings: str = ""
    verdict: str = ""
    tone: str = ""


def report_values(value: Any, language: Language) -> Any:
    """A report, or a part of one, as values for JSON, without the pictures' contents."""
    if isinstance(value, str):
        return translated(value, language)
    if isinstance(value, list | tuple):
        return [report_values(item, language) for item in value]
    if isinstance(value, dict):
        return {translated(name, language): report_values(item, language) for name, item in value.items()}
    if not is_dataclass(value):
        return value
    kind = getattr(value, "kind", None)
    values = {"kind": kind} if kind else {}
    for name, item in vars(value).items():
        if isinstance(value, Answer) and name == "texts":
            item = [(Phrase(key), text) for key, text in item]
        if kind in LINKED and name in LABELS:
            item = [*map(Phrase, item)] if isinstance(item, list) else Phrase(item)
        values |= {} if isinstance(item, bytes) else {name: report_values(item, language)}
    return values


def is_number(cell: Cell) -> bool:
    return isinstance(cell, int | Number)


def as_text(cell: Cell) -> str:
    return "–" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def share(count: int, total: int) -> Number:
    """In percent; a share above 0 never reads 0."""
    if not total or not count:
        return Number("0 %" if total else "–")
    return Number(f"{count / total:.1%}".replace("%", " %") if count >= 0.001 * total else "< 0.1 %")


def count_table(
    title: str, of: str, counts: Mapping[str, int | tuple[int, int]], total: int = 0, *, faults: bool = False
) -> Table:
    """Counts by name with their shares: of `total`, or of a total of their own where a count is (count, total).

    A share is empty where there is no total. Counts of `faults` are findings where they are above 0.
    """
    rows: list[list[Cell]] = []
    for name, count in counts.items():
        count, of_all = count if isinstance(count, tuple) else (count, total)
        rows.append([name, count, share(count, of_all) if of_all else Number()])
    table = Table(title, [of, "number", "share"], rows)
    table.findings = [finding(*row) for row in rows if faults and row[1]]
    return table


def finding(what: str, count: int, of_all: str) -> Phrase:
    return Phrase("{what}: {count:,} ({share})", what=what, count=count, share=of_all)


def visible(text: str) -> str:
    """`text` with control characters, which could also steer a terminal, and invisible ones as escapes."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r", "\\r"))


def clip(text: str, width: int = WIDTH) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text[: 4 * width].split())
    return visible(line if len(line) <= width and len(text) <= 4 * width else line[:width] + "…")
