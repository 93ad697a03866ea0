"""The rows of text files: lines, and passages between blank lines or entries of an encyclopedia."""

import io
import re
from collections.abc import Iterator

from hf_recipes.data.files.encodings import encoding_name
from hf_recipes.data.files.file_io import MAX_ROW_BYTES, skip
from hf_recipes.data.files.source import Record, Source, too_long

ENTRY = re.compile(r"词条\s*[：:]")


def decode_lines(
    stream: io.BufferedReader, source: Source, start: tuple[int, int]
) -> Iterator[tuple[str | None, tuple[int, int], int]]:
    """Each line from `start` on, None where it cannot be decoded; the number and offset after it; and its bytes."""
    number, offset = start
    skip(stream, offset)
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number, offset = number + 1, offset + len(raw)
        if len(raw) > MAX_ROW_BYTES:
            raise too_long(f"{source.path}:{number}")
        try:
            text = raw.decode("utf-8-sig" if number == 1 and source.encoding == "utf-8" else source.encoding)
        except UnicodeDecodeError:
            text = None
        yield text, (number, offset), len(raw)


def read_passages(stream: io.BufferedReader, source: Source, start: tuple[int, int]) -> Iterator[Record]:
    """What is between blank lines, or begins with 词条："""
    lines: list[str] = []
    location, size, problem, before = "", 0, None, start

    def passage() -> Record:
        # Blank lines stay inside an entry, not around it; `after` is the start of the line that ended it.
        value = None if problem else {"text": "\n".join(lines).strip("\n")}
        return Record(location, value, problem, after=before)

    for text, after, count in decode_lines(stream, source, start):
        line = "?" if text is None else text.rstrip()
        ends = bool(ENTRY.match(line)) if source.txt == "entry" else not line
        if ends and lines:
            yield passage()
            lines, problem = [], None
        if line and not lines:
            location, size = f"{source.path}:{after[0]}", 0
        if line or lines:
            lines.append(line)
        if text is None:
            problem = f"not {encoding_name(source.encoding)} text"
        before, size = after, size + count
        if size > MAX_ROW_BYTES:
            raise too_long(location)
    if lines:
        yield passage()
