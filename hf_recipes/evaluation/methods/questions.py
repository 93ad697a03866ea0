"""Single-choice questions of files, in two forms."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import shown
from hf_recipes.data.conversations.cells import parsed
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.metrics.text import normalize_answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANSWER = "\n答案："
# "A." "A、" "A：" "A)" "(A)" "【A】" at the start of a line.
_OPTION = re.compile(r"^\s*(?:[（(【\[]\s*([A-Z])\s*[)）】\]]|([A-Z])\s*[.．、，,:：)）])", re.MULTILINE)
_BREAK = re.compile(r"\\n(?![a-z])")  # \nu, \neq, … are LaTeX
_SPLIT = re.compile(r"_(dev|val|test|train)$")


@dataclass(frozen=True)
class Question:
    """`text` ends where the letter of the answer has to follow."""

    location: str
    source: str
    text: str
    letters: str
    answer: str


def read_rows(specs: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of files, folders or Hub ids, each with its `location` (``file:line``)."""
    rows = []
    for source in find_sources(specs, all_splits=True):
        for record in read_records(source):
            if record.value is None:
                raise UserError(f"{record.location}: {shown(record.problem)}; mend this row")
            rows.append({**record.value, "location": record.location})
    return rows


def read_question(row: Mapping[str, Any]) -> Question:
    r"""A row in one of three forms, the names of whose columns may be capitalised:

    - `question` with the options inside, each on its own line after its letter (``A.``, ``A、``, ``(A)``, …), and
      `answer`. A backslash and an n that no small letter follows are a line break. If the last line is an option,
      ``答案：`` is put below it.
    - `question`, the options in columns `A`, `B`, … and `answer` (C-Eval and CMMLU).
    - `question`, the options as a list or by their letters in `options`, `option` or `choices`, and `answer`: a letter,
      the text of an option, or its index in the list (CMB, C3, MMLU).

    The source is the column `subject` or `source`, else the file's name without its split (``law_val.csv``: law).
    """
    location = row["location"]
    columns = {name.lower() if len(name) > 1 else name: str(value) for name, value in row.items() if value is not None}
    columns |= _options_in_one_column(row)
    question = columns.get("question", "")
    if not question.strip():
        raise UserError(
            f"{location}: no question; expected the columns question and answer (there are {', '.join(row)})"
        )
    if "A" in columns and "B" in columns:
        letters = "".join(letter for letter in LETTERS if columns.get(letter, "").strip())
        options = (f"\n{letter}. {columns[letter].strip()}" for letter in letters)
        text = question.strip() + "".join(options) + ANSWER
    else:
        text = _BREAK.sub("\n", question).strip("\r\n")
        options = list(_OPTION.finditer(text))
        # A line of a dialogue can begin with "A：" too; the options come last.
        first = max((index for index, match in enumerate(options) if "A" in match.groups()), default=len(options))
        letters = "".join(match[1] or match[2] for match in options[first:])
        if options and "\n" not in text[options[-1].end() :]:
            text += ANSWER
    if len(letters) < 2:
        raise UserError(f"{location}: no options found; write each on a line of its own, as 'A. …', 'B. …'")
    if not LETTERS.startswith(letters):
        raise UserError(
            f"{location}: the options are {', '.join(letters)}; expected {', '.join(LETTERS[: len(letters)])}"
        )
    answer = normalize_answer(columns.get("answer", "")).upper()
    if not answer:
        raise UserError(f"{location}: no answer to compare with; fill in the column answer")
    if len(answer) != 1 or answer not in letters:
        raise UserError(f"{location}: the answer {answer!r} is not among the options {', '.join(letters)}")
    file = Path(location.rpartition(":")[0]).name
    source = columns.get("subject") or columns.get("source") or _SPLIT.sub("", file.split(".")[0])
    return Question(location, source, text, letters, answer)


def _options_in_one_column(row: Mapping[str, Any]) -> dict[str, str]:
    """The options of a row as columns of their letters, and the `answer` as one of these, where one column has all."""
    values = {name.lower(): value for name, value in row.items()}
    named = (parsed(values.get(name)) for name in ("options", "option", "choices", "choice"))
    options = next((value for value in named if isinstance(value, (list, dict)) and value), None)
    if options is None:
        return {}
    answer = values.get("answer")
    if isinstance(options, dict) and isinstance(options.get("text"), list):  # ARC
        options = dict(zip(options.get("label") or LETTERS, options["text"], strict=False))
    elif isinstance(options, list):
        is_index = str(answer).isdigit() and int(answer) < len(options) and answer not in options
        answer = LETTERS[int(answer)] if is_index else answer
        options = dict(zip(LETTERS, options, strict=False))
    texts = {str(letter): str(text) for letter, text in options.items()}
    return texts | {"answer": next((letter for letter, text in texts.items() if text == answer), str(answer or ""))}
