"""A file of an export, read whole: as text, as the rows of a csv, as JSON."""

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import COMPRESSED, MAX_ROW_BYTES, open_text

SUFFIXES = tuple(
    suffix + compression for suffix in (".txt", ".csv", ".json", ".jsonl") for compression in ("", *COMPRESSED)
)
HEAD = 1 << 14  # characters by which text formats are told apart
_COMMENTS = re.compile(r"\s*(?:#[^\n]*(?:\n\s*|\Z))*")  # above JSON lines
# Telegram's escape of control characters, which is none of JSON.
_HEX_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\x([01][0-9A-F])")


class ExportFile:
    """One file; what it holds is read when a reader asks for it."""

    def __init__(self, path: str):
        self.path = path
        self.stem = Path(path).name.split(".")[0]

    @property
    def is_json(self) -> bool:
        return ".json" in "".join(Path(self.path.lower()).suffixes[-2:])

    @cached_property
    def text(self) -> str:
        """The text with lines that end in LF; bytes that are no text are lone surrogates."""
        file, encoding = open_text(self.path)
        try:
            with file:
                text = file.read().replace("\r\n", "\n")
                return text if "\n" in text else text.replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: cut short or damaged {encoding.upper()} text ({error.reason})") from None

    @cached_property
    def head(self) -> str:
        return self.text[:HEAD]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The header of a csv; of other files, what their first line has between commas."""
        return tuple(next(csv.reader(self.head.splitlines()[:1]), ()))

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of a csv, with the number of the line where each begins."""
        csv.field_size_limit(MAX_ROW_BYTES)
        reader = csv.reader(io.StringIO(self.text, newline=""))
        try:
            next(reader)
            end = reader.line_num
            for fields in reader:
                line, end = end + 1, reader.line_num  # a quoted field can span lines
                if fields:
                    yield line, dict(zip(self.columns, fields, strict=False))
        except csv.Error as error:
            raise UserError(f"{self.path}:{reader.line_num}: broken CSV ({error}); mend this line") from None

    def sections(self, header: re.Pattern) -> Iterator[tuple[int, re.Match, str]]:
        """The messages of a txt: the number of the line of each header, the header, and the text up to the next one."""
        headers = list(header.finditer(self.text))
        line, position = 1, 0
        for match, after in zip(headers, [*headers[1:], None], strict=True):
            start = match.end() - len(match[0].lstrip("\n"))
            line += self.text.count("\n", position, start)
            position = start
            yield line, match, self.text[match.end() : after.start() if after else len(self.text)]

    @cached_property
    def value(self) -> Any:
        """The value of a JSON file; of JSON lines, that of the first line; None of other files."""
        if not self.is_json:
            return None
        try:
            if self.is_lines:
                return json.JSONDecoder().raw_decode(self.text, _COMMENTS.match(self.text).end())[0]
            try:
                return json.loads(self.text)
            except ValueError:
                return json.loads(_HEX_ESCAPE.sub(r"\1\\u00\2", self.text))
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            problem = getattr(error, "msg", "nested too deeply")
            raise UserError(f"{self.path}:{line}: broken JSON ({problem}); export the chat again") from None

    @property
    def is_lines(self) -> bool:
        return ".jsonl" in Path(self.path.lower()).name

    def json_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of JSON lines but comments, with their line; an empty one for a line that is no object."""
        for line, text in enumerate(self.text.split("\n"), 1):
            if text.strip() and not text.startswith("#"):
                try:
                    yield line, as_dict(json.loads(text))
                except (ValueError, RecursionError):
                    yield line, {}


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """The items of a JSON array, with an empty object for each that is none."""
    return [as_dict(item) for item in value] if isinstance(value, list) else []


def string(value: Any) -> str:
    """A name or number of a JSON file as text; empty for null."""
    return "" if value is None else str(value)
