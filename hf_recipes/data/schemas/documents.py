"""Rows of text as documents: `text`, and where the row has them an `id` and the `kind` "code".

These are the shapes of Chinese corpora: wikipedia-cn (`completion`), Baidu Baike (title, summary, sections), MNBVC
(`text`, or 段落 with 内容), Wudao and others (title and content), SkyPile (`text`), and programs with their language or
repository. Conversations become documents too.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.schemas.columns import Columns, Example, Reads, Row, Schema, text_of

# Where rows have text and id, in the order in which they are looked for, and what distinguishes programs from prose.
TEXT_COLUMNS: dict[Reads, tuple[str, ...]] = {
    "examples": ("text",),
    "prompts": ("text", "content"),
    "documents": ("text", "content", "completion", "raw_content", "paragraphs"),
}
ID_COLUMNS = ("id", "uniqueKey", "docId", "sample_id", "文件名", "url")
REPOSITORY_COLUMNS = ("repo_name", "max_stars_repo_path", "max_stars_repo_name", "仓库名")
PROGRAMMING_LANGUAGES = re.compile(
    r"assembly|bash|c|c#|c\+\+|cpp|csharp|css|cuda|dart|dockerfile|fortran|go|haskell|html|java|javascript|julia|kotlin|"
    r"lua|makefile|matlab|objective-c|perl|php|powershell|python|r|ruby|rust|scala|shell|sql|swift|typescript|verilog|vue",
    re.IGNORECASE,
)
LANGUAGE = re.compile(
    r"(chinese|english|japanese|korean|french|german|spanish|russian|arabic|zh|en|ja|ko|fr|de|es|ru|ar|cht|"
    r"it|pt|nl|id|vi|th|tr|he|el|pl|cs|sv|cy|eo|he|hu|sk|zh-?cn|zh-?tw|中文|英文|日文)(_text)?",
    re.IGNORECASE,
)
REPEAT_MARKS = ("是否重复", "是否跨文件重复", "是否重复文件")  # MNBVC's, of a paragraph or a whole row
SPEAKERS = {"system": "", "user": "问：", "assistant": "答：", "tool": "工具："}


def has_text(row: Row) -> bool:
    return any(name in row for name in TEXT_COLUMNS["documents"])


def is_program(row: Row) -> bool:
    """Whether a row with text says that it is a program."""
    languages = (row.get(name) for name in ("language", "lang", "programming_language"))
    named = any(isinstance(name, str) and PROGRAMMING_LANGUAGES.fullmatch(name) for name in languages)
    return has_text(row) and (named or any(name in row for name in REPOSITORY_COLUMNS))


def fill_text(columns: Columns, row: Row) -> Columns:
    column = next((name for name in TEXT_COLUMNS[columns.reads] if name in row), "text")
    return replace(columns, prompt=columns.prompt or column)


def fill_code(columns: Columns, row: Row) -> Columns:
    return replace(columns, prompt=columns.prompt or "code") if "code" in row else fill_text(columns, row)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(parts: Iterable[Any]) -> str:
    text = "\n".join(part for part in parts if is_text(part))
    if not text:
        raise RowProblem("empty text")
    return text


def from_text(row: Row, columns: Columns) -> Example:
    text = _text_in(row, columns.prompt)
    return {"text": _titled(row, text) if columns.reads == "documents" else text}


def from_article(row: Row, columns: Columns) -> Example:
    return {"text": _titled(row, _text_in(row, columns.prompt or "content"))}


def _text_in(row: Row, column: str) -> str:
    """The text of a column; of a list of texts, such as a poem's lines, a line each."""
    lines = row.get(column)
    if isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines):
        row = {**row, column: "\n".join(lines)}
    return text_of(row, column, "text")


def _titled(row: Row, text: str) -> str:
    """`text` below its title, unless it begins with it."""
    title = row.get("title")
    return text if not is_text(title) or text.startswith(title) else f"{title}\n{text}"


def languages_of(row: Row) -> list[str]:
    """The texts of a row in several languages, in its order: of `translation`, or of columns named so."""
    texts = row.get("translation")
    if not isinstance(texts, dict):
        texts = {name: text for name, text in row.items() if LANGUAGE.fullmatch(str(name))}
    return [text for text in texts.values() if is_text(text)]


def from_parallel(row: Row, columns: Columns) -> Example:
    return {"text": _lines(languages_of(row))}


def from_baike(row: Row, columns: Columns) -> Example:
    sections = row.get("sections") or []
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise RowProblem("'sections' is not a list of sections")
    parts = [row.get("summary"), *(section.get(name) for section in sections for name in ("title", "content"))]
    return {"text": _lines([row.get("title"), _lines(parts)])}


def is_marked(part: Row) -> bool:
    """Whether MNBVC marks a row or a paragraph as a repeat."""
    return any(name in part and str(part[name]).lower() in ("true", "1", "是") for name in REPEAT_MARKS)


def marked_paragraphs(row: Row) -> int:
    paragraphs = row.get("段落")
    return sum(isinstance(part, dict) and is_marked(part) for part in paragraphs) if isinstance(paragraphs, list) else 0


def without_marked_paragraphs(row: Row) -> Row:
    return {**row, "段落": [part for part in row["段落"] if not (isinstance(part, dict) and is_marked(part))]}


def from_mnbvc(row: Row, columns: Columns) -> Example:
    paragraphs = row.get("段落")
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, dict) for paragraph in paragraphs):
        raise RowProblem("'段落' is not a list of paragraphs")
    texts = ([paragraph.get("内容")] if "内容" in paragraph else languages_of(paragraph) for paragraph in paragraphs)
    return {"text": _lines(text for of_paragraph in texts for text in of_paragraph)}


def from_code(row: Row, columns: Columns) -> Example:
    return {"text": text_of(row, columns.prompt, "code"), "kind": "code"}


def as_document(schema: Schema) -> Schema:
    """`schema` with the row's id and kind in its examples, and with conversations as text."""
    convert = _dialogue(schema.convert) if schema.form == "messages" else schema.convert

    def with_id(row: Row, columns: Columns) -> Example:
        ids = (row[name] for name in ID_COLUMNS if isinstance(row.get(name), (str, int)) and row[name] != "")
        kind = {"kind": "code"} if row.get("kind") == "code" else {}  # of a corpus that was cleaned before
        document_id = next(ids, None)
        return convert(row, columns) | kind | ({} if document_id is None else {"id": str(document_id)})

    return replace(schema, form="text", convert=with_id)


def _dialogue(convert: Callable[[Row, Columns], Example]) -> Callable[[Row, Columns], Example]:
    """Conversations as text in the form of MNBVC's questions and answers: ``问：…`` and ``答：…`` by turns."""

    def render(row: Row, columns: Columns) -> Example:
        turns, example = [], convert(row, columns)
        for message in example.pop("messages"):
            calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
            texts = [message.get("reasoning_content"), message.get("content"), *calls]
            turns.append(SPEAKERS[message["role"]] + "\n".join(filter(None, texts)))
        return {"text": _lines(turns)} | {name: example[name] for name in ("unused",) if name in example}

    return render
