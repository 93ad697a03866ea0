"""A schema: how rows of one shape are recognised, and how one becomes an example."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, row_status
from hf_recipes.data.conversations.cells import is_empty, parsed
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.files.source import Record

Row = Mapping[str, Any]
Example = dict[str, Any]
NO_COLUMN = "none"
Reads = Literal["examples", "prompts", "documents"]


class MeaningLost(Exception):
    """What usually carries meaning would be left out of an example; says what to do, and not where."""


@dataclass(frozen=True)
class Columns:
    """The columns to read, None where the schema decides.

    `reads` is what the rows are read as: examples to train on; prompts, which need no answer; or documents, which are
    text. `thoughts` is the column of those before the answer, of a pair before the chosen one, or ``none``. `context`
    follows the question in its turn. `ignored` are the columns, and the keys of turns, that the user leaves out.
    """

    schema: str | None = None
    prompt: str | None = None
    response: str | None = None
    history: str | None = None
    system_prompt: str | None = None
    label: str | None = None  # whether an answer is a good one, or, with a threshold, how good it is
    threshold: float | None = None
    low: float | None = None
    reads: Reads = "examples"
    thoughts: str | None = None
    rejected_thoughts: str | None = None
    system: str | None = None
    tools: str | None = None
    context: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """One shape of rows.

    Attributes:
        form: of its examples: messages, preference, unpaired or text.
        matches: whether a row has this shape.
        convert: a row as an example; raises `RowProblem` for one that it cannot take, and repairs nothing.
        reads: what its rows can be read as.
        fill: `columns` with those that the user did not name, as the first rows show them.
        columns: those of the file that it was detected for.
        unused: the other columns of the file, which nothing is made of.
        absent: columns to be ignored that the file has not, with what may be meant.
    """

    name: str
    form: str
    matches: Callable[[Columns, Row], bool]
    convert: Callable[[Row, Columns], Example]
    reads: tuple[Reads, ...] = ("examples", "prompts", "documents")
    fill: Callable[[Columns, Row], Columns] = lambda columns, row: columns
    columns: Columns = Columns()
    unused: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def read(self, record: Record) -> Example:
        """The example of a record.

        Raises:
            RowProblem: the record, or what it says, cannot be used.
            UserError: it has what usually carries meaning, and no example would use.
        """
        if record.value is None:
            raise RowProblem(record.problem)
        try:
            return self.to_example(record.value)
        except MeaningLost as error:
            raise UserError(f"{record.location}: {error}") from None

    def to_example(self, row: Row) -> Example:
        if self.columns.ignored:
            row = without_ignored_keys(row, self.columns.ignored)
        return self.convert(row, self.columns)


def status_of(example: Example) -> str:
    """The status of the row that became `example`, with what is to be known of it."""
    return row_status(KEPT, ", ".join(example["remarks"])) if example.get("remarks") else KEPT


@cache
def _ignored_keys(ignored: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(column, key) for column, sign, key in (name.partition("[].") for name in ignored) if sign]


def without_ignored_keys(row: Row, ignored: tuple[str, ...]) -> Row:
    """`row` without the keys of turns that the user leaves out, as ``messages[].emotion``."""
    for column, key in _ignored_keys(ignored):
        turns = parsed(row.get(column))
        if isinstance(turns, list) and any(isinstance(turn, dict) and key in turn for turn in turns):
            turns = [{k: turn[k] for k in turn if k != key} if isinstance(turn, dict) else turn for turn in turns]
            row = {**row, column: turns}
    return row


def text_of(row: Row, column: str, what: str) -> str:
    value = row.get(column)
    if value is None or value != value:  # NaN is what pandas writes for nothing
        raise RowProblem(f"no {column!r}")
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} is a {type(value).__name__}, not text")
    if not value.strip():
        raise RowProblem(f"empty {what}")
    return value


def answer_of(row: Row, column: str) -> tuple[str, bool]:
    """The answer in a column, and whether it is a number, an object or a list, rendered as JSON."""
    value = row.get(column)
    if value is None or value != value or isinstance(value, str):
        return text_of(row, column, "answer"), False
    return json.dumps(value, ensure_ascii=False, default=str), True


def read_choices(value: Any) -> list[str]:
    """Answers to choose from: a list, also as JSON or as pandas writes it, or a text in which the first of these that
    it has separates them: a line break, ``|``, a semicolon, a comma, 、. So 头痛、头晕，发热 is two."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value)
    if isinstance(value, str):
        separator = next((signs for signs in ("\n", "|｜", ";；", ",，", "、") if set(signs) & set(value)), "\n")
        value = re.split(f"[{separator}]", value)
    choices = value if isinstance(value, list | tuple) else [] if is_empty(value) else [value]
    return [choice for choice in (str(choice).strip() for choice in choices) if choice]


def optional(row: Row, column: str | None) -> Any:
    """The value of a column, None where it is empty or missing."""
    value = row.get(column) if column else None
    return None if is_empty(value) else value
