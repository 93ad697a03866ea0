"""Rows of any known shape as documents: `text`, and where the row has them an `id` and the `kind` "code".

Beside the schemas of conversations, whose turns become a document too, these are the shapes of Chinese corpora:
wikipedia-cn (`completion`), Baidu Baike (title, summary, sections), MNBVC (`text`, or 段落 with 内容), Wudao and others
(title and content), SkyPile (`text`), and programs with their language or repository.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.conversation import RowProblem
from hf_recipes.data.schemas.registry import SCHEMAS, Columns, Row, Schema, detect, find_schema, text_of

# Where documents have text and id, in the order in which they are looked for, and what tells programs from prose.
TEXT_COLUMNS = ("text", "content", "completion", "raw_content")
ID_COLUMNS = ("id", "uniqueKey", "docId", "sample_id", "文件名", "url")
REPOSITORY_COLUMNS = ("repo_name", "max_stars_repo_path", "max_stars_repo_name", "仓库名")
PROGRAMMING_LANGUAGES = re.compile(
    r"assembly|bash|c|c#|c\+\+|cpp|csharp|css|cuda|dart|dockerfile|fortran|go|haskell|html|java|javascript|julia|kotlin|"
    r"lua|makefile|matlab|objective-c|perl|php|powershell|python|r|ruby|rust|scala|shell|sql|swift|typescript|verilog|vue",
    re.IGNORECASE,
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(parts: Iterable[Any]) -> str:
    text = "\n".join(part for part in parts if _is_text(part))
    if not text:
        raise RowProblem("empty text")
    return text


def _from_article(row: Row, columns: Columns) -> dict[str, Any]:
    title, content = row.get("title"), text_of(row, columns.prompt or "content", "content")
    return {"text": content if not _is_text(title) or content.startswith(title) else f"{title}\n{content}"}


def _from_baike(row: Row, columns: Columns) -> dict[str, Any]:
    sections = row.get("sections") or []
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise RowProblem("'sections' is not a list of sections")
    parts = [row.get("summary"), *(section.get(name) for section in sections for name in ("title", "content"))]
    return {"text": _lines([row.get("title"), _lines(parts)])}


def _from_mnbvc(row: Row, columns: Columns) -> dict[str, Any]:
    paragraphs = row.get("段落")
    if not isinstance(paragraphs, list) or not all(isinstance(paragraph, dict) for paragraph in paragraphs):
        raise RowProblem("'段落' is not a list of paragraphs")
    return {"text": _lines(paragraph.get("内容") for paragraph in paragraphs)}


def _from_code(row: Row, columns: Columns) -> dict[str, Any]:
    return {"text": text_of(row, columns.prompt, "code"), "kind": "code"}


SPEAKERS = {"system": "", "user": "问：", "assistant": "答：", "tool": "工具："}


def _dialogue(convert: Callable[[Row, Columns], dict[str, Any]]) -> Callable[[Row, Columns], dict[str, Any]]:
    """Conversations as documents, in the form of MNBVC's questions and answers: ``问：…`` and ``答：…`` by turns."""

    def render(row: Row, columns: Columns) -> dict[str, Any]:
        turns = []
        for message in convert(row, columns)["messages"]:
            calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
            turns.append(SPEAKERS[message["role"]] + "\n".join(filter(None, [message.get("content"), *calls])))
        return {"text": _lines(turns)}

    return render


def _document(convert: Callable[[Row, Columns], dict[str, Any]]) -> Callable[[Row, Columns], dict[str, Any]]:
    """What `convert` makes, with the row's own id and kind if it has them."""

    def with_id(row: Row, columns: Columns) -> dict[str, Any]:
        own = next(
            (row[name] for name in ID_COLUMNS if isinstance(row.get(name), (str, int)) and row[name] != ""), None
        )
        known = {"kind": "code"} if row.get("kind") == "code" else {}  # of a corpus that was cleaned before
        return convert(row, columns) | known | ({} if own is None else {"id": str(own)})

    return with_id


DOCUMENT_SCHEMAS = {
    name: Schema(name, "text", _document(convert))
    for name, convert in {
        "text": SCHEMAS["text"].convert,
        "article": _from_article,
        "baike": _from_baike,
        "mnbvc": _from_mnbvc,
        "code": _from_code,
        **{name: _dialogue(schema.convert) for name, schema in SCHEMAS.items() if schema.form == "messages"},
    }.items()
}


def find_text_schema(row: Row, columns: Columns, path: str) -> tuple[Schema, Columns]:
    """As `find_schema`, where documents are read: the schema makes ``{"text"}``, maybe with `id` and `kind`.

    `kind` is "code" for a program. Questions and answers, and conversations, become documents too.
    """
    name = columns.schema or _detect_document(row, columns)
    if name not in ("text", "article", "baike", "mnbvc", "code"):
        schema, columns = find_schema(row, columns, path)
        if schema.name not in DOCUMENT_SCHEMAS:
            raise UserError(f"{path}: its schema is {schema.name}, which no document can be made of")
        return DOCUMENT_SCHEMAS[schema.name], columns
    if columns.prompt is not None and columns.prompt not in row:
        raise UserError(f"{path}: --prompt_column {columns.prompt!r} is not a column; there are {', '.join(row)}")
    if columns.prompt is None and name in ("text", "code"):
        candidates = ("code", *TEXT_COLUMNS) if name == "code" else TEXT_COLUMNS
        columns = replace(columns, prompt=next((column for column in candidates if column in row), "text"))
    return DOCUMENT_SCHEMAS[name], columns


def _detect_document(row: Row, columns: Columns) -> str | None:
    if columns.response:
        return None
    languages = (row.get(name) for name in ("language", "lang", "programming_language"))
    is_program = any(isinstance(name, str) and PROGRAMMING_LANGUAGES.fullmatch(name) for name in languages)
    has_text = any(name in row for name in TEXT_COLUMNS)
    if has_text and (is_program or any(name in row for name in REPOSITORY_COLUMNS)):
        return "code"
    if columns.prompt or "text" in row:
        return "text"
    if isinstance(row.get("段落"), list):
        return "mnbvc"
    if "title" in row and "sections" in row:
        return "baike"
    if detect(row, columns, list(row)):
        return None
    if _is_text(row.get("code")) and not has_text:
        return "code"
    if "title" in row and "content" in row:
        return "article"
    return "text" if has_text else None
