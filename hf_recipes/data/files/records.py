"""The rows of files and Hub data sets, which know their file and line.

Read are .json (an array, or an object a line), .jsonl, .csv, .tsv, .parquet and .txt, the text ones also as .gz or
.zst. A row that is broken by itself is handed on as a `Record` with a `problem`, for the ledger; what spoils a whole
file (cut short, not text, empty) is a `UserError`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import with_detail
from hf_recipes.data.files.file_io import CHUNK, MAX_ROW_BYTES, open_binary, skip
from hf_recipes.data.files.sources import ENTRY, Source, load_hub

BEGIN = (0, 0)  # lines, or rows where there are no lines, and decompressed bytes before a row


@dataclass(slots=True)
class Record:
    """One row: its `value`, or the `problem` that keeps it from having one, at ``file:line``.

    `after` is where the next row begins, as `read_records` takes it.
    """

    location: str
    value: dict[str, Any] | None = None
    problem: str | None = None
    after: tuple[int, int] = BEGIN


def read_records(source: Source, start: tuple[int, int] = BEGIN) -> Iterator[Record]:
    """Yield the rows of one source in order, from `start` on: the `after` of a record that was read before.

    Where rows are lines, those before are not parsed (of an uncompressed file, not even read).

    Raises:
        UserError: the file is cut short, damaged, or holds no row at all.
    """
    path, kind = source.path, re.sub(r"\.(gz|zst)$", "", source.path)
    if source.split is not None:
        rows = load_hub(path, source.split, source.cache_dir)
        for number in range(start[0], len(rows)):
            yield Record(f"{path}/{source.split}:{number + 1}", rows[number], after=(number + 1, 0))
        return
    if kind.endswith(".parquet"):
        yield from _numbered(_read_parquet(path), start)
        return
    found = start != BEGIN
    with open_binary(path) as stream:
        if kind.endswith((".csv", ".tsv")):
            rows = _numbered(_read_csv(stream, source, "\t" if kind.endswith(".tsv") else ","), start)
        elif kind.endswith(".txt"):
            read = _read_lines if source.txt == "lines" else _read_passages
            rows = read(stream, source, lambda text: {"text": text}, start)
        else:
            rows = _read_json(stream, source, start)
        for row in rows:
            found = True
            yield row
    if not found:
        raise UserError(f"{path}: the file holds no rows")


def _numbered(rows: Iterator[Record], start: tuple[int, int]) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        if number > start[0]:
            row.after = (number, 0)
            yield row


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(k for k in keys if keys.count(k) > 1)!r}")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _row(location: str, value: Any, text: str) -> Record:
    if not isinstance(value, dict):
        return Record(location, problem="not a JSON object")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Record(location, problem="half a surrogate pair (\\ud800 to \\udfff)")
    return Record(location, value)


def _too_long(location: str) -> UserError:
    return UserError(f"{location}: this row is longer than {MAX_ROW_BYTES >> 20} MiB; split it or take it out")


def _read_lines(
    stream: io.BufferedReader, source: Source, parse: Callable[[str], dict], start: tuple[int, int]
) -> Iterator[Record]:
    number, offset = start
    skip(stream, offset)
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number, offset = number + 1, offset + len(raw)
        location = f"{source.path}:{number}"
        if len(raw) > MAX_ROW_BYTES:
            raise _too_long(location)
        try:
            text = raw.decode("utf-8-sig" if number == 1 and source.encoding == "utf-8" else source.encoding).strip()
        except UnicodeDecodeError:
            yield Record(location, problem=f"not {source.encoding.upper()} text", after=(number, offset))
            continue
        if not text:
            continue
        try:
            row = _row(location, parse(text), text)
        except RecursionError:
            row = Record(location, problem="nested too deeply")
        except ValueError as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            row = Record(location, problem=with_detail("broken JSON", message))
        row.after = (number, offset)
        yield row


def _read_passages(
    stream: io.BufferedReader, source: Source, parse: Callable[[str], dict], start: tuple[int, int]
) -> Iterator[Record]:
    """What is between blank lines, or begins with 词条："""
    number, offset = start
    skip(stream, offset)
    lines: list[str] = []
    location, size, problem = "", 0, None

    def passage() -> Record:
        # Blank lines inside an entry stay, those around it go; `after` is where the line begins that ended it.
        text = "\n".join(lines).strip("\n")
        value = None if problem else parse(text)
        return Record(location, value, problem, after=(number, offset))

    while raw := stream.readline(MAX_ROW_BYTES + 1):
        try:
            line = raw.decode("utf-8-sig" if number == 0 and source.encoding == "utf-8" else source.encoding).rstrip()
            bad = None
        except UnicodeDecodeError:
            line, bad = "?", f"not {source.encoding.upper()} text"
        ends = bool(ENTRY.match(line)) if source.txt == "entry" else not line
        if ends and lines:
            yield passage()
            lines, size, problem = [], 0, None
        number, offset, size = number + 1, offset + len(raw), size + len(raw)
        if line and not lines:
            location, size = f"{source.path}:{number}", len(raw)
        if line or lines:
            lines.append(line)
        problem = problem or bad
        if size > MAX_ROW_BYTES:
            raise _too_long(location)
    if lines:
        yield passage()


def _read_json(stream: io.BufferedReader, source: Source, start: tuple[int, int]) -> Iterator[Record]:
    """An array, objects a line, or objects that span lines: told apart by how the file begins."""
    head = stream.peek(4096)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] == b"[":
        yield from _numbered(_read_values(stream, source, in_array=True), start)
    elif re.match(rb"\{\s*\n", head):
        yield from _numbered(_read_values(stream, source, in_array=False), start)
    else:
        yield from _read_lines(stream, source, _decoder.decode, start)


_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")


def _read_values(stream: io.BufferedReader, source: Source, in_array: bool) -> Iterator[Record]:
    """Decode the elements of an array (or objects one after the other) without holding more than one chunk and row."""
    path = source.path
    decode = codecs.getincrementaldecoder("utf-8-sig" if source.encoding == "utf-8" else source.encoding)().decode
    text, position, ended = "", 0, False
    line, counted = 1, 0  # `line` is that of the character at `counted`

    def line_at(location: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, location), location
        return line

    def more(size: int = CHUNK) -> None:
        nonlocal text, position, ended, counted
        line_at(position)
        text, position, counted = text[position:], 0, 0
        chunk = stream.read(size)
        ended = len(chunk) < size
        try:
            text += decode(chunk, ended)
        except UnicodeDecodeError as error:
            at = line_at(len(text)) + chunk.count(b"\n", 0, error.start)
            raise UserError(f"{path}:{at}: not {source.encoding.upper()} text; mend or convert the file") from None

    more()
    if in_array:
        position = _SPACE.match(text).end() + 1
    commas = expected = 0
    while True:
        before, position = position, _SEPARATOR.match(text, position).end()
        commas += text.count(",", before, position)
        if position == len(text) and not ended:
            more()
            continue
        if position == len(text) and not in_array:
            return
        location = f"{path}:{line_at(position)}"
        if position == len(text):
            raise UserError(f"{location}: the JSON array is cut short (no closing bracket); fetch or export it again")
        if in_array and text[position] == "]":
            rest = text[position + 1 :]
            if rest.strip():
                raise UserError(f"{location}: there is more after the end of the JSON array")
            return
        if in_array and commas != expected:
            raise UserError(f"{location}: broken JSON (expected one comma between two rows); mend this line")
        commas, expected = 0, 1
        size = CHUNK
        while True:
            try:
                value, end = _decoder.raw_decode(text, position)
                break
            except (ValueError, RecursionError) as error:
                at, message = getattr(error, "pos", position), getattr(error, "msg", str(error)) or "nested too deeply"
                # A value that goes on in the next chunk breaks off at the end of this one.
                is_open = message.startswith("Unterminated") or at >= len(text.rstrip()) - (0 if ended else 16)
                if is_open and not ended and len(text) - position <= MAX_ROW_BYTES:
                    more(size)
                    size *= 2
                    continue
                if is_open and not ended:
                    raise _too_long(location) from None
                where = f"{path}:{line_at(at)}"
                if is_open:
                    raise UserError(f"{where}: cut short in the middle of a row; fetch it again") from None
                raise UserError(f"{where}: broken JSON ({message}); mend this line") from None
        yield _row(location, value, text[position:end])
        position = end
        if position > CHUNK and not ended:
            more()


def _read_csv(stream: io.BufferedReader, source: Source, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_BYTES)
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    path = source.path
    reader = csv.reader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        # pandas leaves the name of its index, the first column, empty.
        if len(set(header)) != len(header) or "" in header[1:] or header == [""]:
            raise UserError(f"{path}:1: the header has an empty or a repeated column name: {', '.join(header)}")
        end = reader.line_num
        for fields in reader:
            location, end = f"{path}:{end + 1}", reader.line_num  # a quoted field can span lines
            if len(fields) == len(header):
                yield Record(location, dict(zip(header, fields, strict=True)))
            elif fields:
                more = "more" if len(fields) > len(header) else "fewer"
                yield Record(location, problem=f"{more} fields than the header's {len(header)}")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{reader.line_num + 1}: not {encoding.upper()} text; convert the file") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken CSV ({error}); mend this line") from None


def _read_parquet(path: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:{number}", row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    if not number:
        raise UserError(f"{path}: the file holds no rows")
