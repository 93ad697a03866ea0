"""The rows of files and Hub data sets, with their file and line.

File types are .json (an array, or an object a line), .jsonl, .csv, .tsv, .parquet and .txt, the text ones also as .gz
or .zst. A broken row becomes a `Record` with a `problem`, for the ledger; a broken file (cut short, not text, empty)
raises `UserError`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import with_detail
from hf_recipes.data.files.dataset_info import Layout
from hf_recipes.data.files.encodings import encoding_name
from hf_recipes.data.files.file_io import CHUNK, MAX_ROW_BYTES, Recoded, open_binary, skip
from hf_recipes.data.files.hub_data import load_hub

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import RecordBatch

ENTRY = re.compile(r"词条\s*[：:]")
WRAPPERS = ("data", "rows", "examples", "instances")  # keys of the rows in a file that is one object
SPREAD = re.compile(rb"\{\s*\n")  # how a file of objects that span lines begins
TAB = "\t"
BATCH = 1000  # rows of a table that are read at a time
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
    def drawn(self) -> int:
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
        drawn = f"{self.draw.drawn:,} rows drawn of {self.draw.size:,}" if self.draw else ""
        mapped = "columns as dataset_info.json maps them" if self.layout else ""
        return [note for note in (self.note, encoding, mapped, drawn) if note]


@dataclass(slots=True)
class Record:
    """One row at ``file:line``: its `value`, or the `problem` with it. The next row starts at `after`."""

    location: str
    value: dict[str, Any] | None = None
    problem: str | None = None
    after: tuple[int, int] = BEGIN


def read_records(source: Source, start: tuple[int, int] = BEGIN) -> Iterator[Record]:
    """Yield the rows of one source in order, from `start` on: the `after` of an earlier record.

    Where rows are lines, those before are not parsed (of an uncompressed file, not even read).
    """
    if source.draw:
        yield from _numbered(_drawn(source), start)
    elif source.layout:
        for record in _read(source, start):
            if record.value is not None:
                record.value = source.layout.row(record.value, record.location)
            yield record
    else:
        yield from _read(source, start)


def _drawn(source: Source) -> Iterator[Record]:
    """The rows of `Source.draw`: whole passes, then the sample."""
    draw, whole = source.draw, replace(source, draw=None)
    for _ in range(draw.count // draw.rows):
        yield from read_records(whole)
    sample = iter(draw.sample().tolist())
    wanted = next(sample, None)
    for number, record in enumerate(read_records(whole) if wanted is not None else ()):
        if number == wanted:
            yield record
            if (wanted := next(sample, None)) is None:
                return


def _read(source: Source, start: tuple[int, int]) -> Iterator[Record]:
    path, kind = source.path, re.sub(r"\.(gz|zst)$", "", source.path.lower())
    if source.split is not None:
        for record in _read_dataset(load_hub(path, source.split, source.cache_dir), f"{path}/{source.split}", start[0]):
            record.after = (int(record.location.rpartition(":")[2]), 0)
            yield record
        return
    if kind.endswith(".parquet"):
        yield from _numbered(_read_parquet(path), start)
        return
    if kind.endswith(".arrow"):
        yield from _numbered(_read_arrow(path), start)
        return
    has_rows = start != BEGIN
    with _opened(source) as (stream, source):
        if kind.endswith((".csv", ".tsv")):
            rows = _numbered(_read_csv(stream, source, TAB if kind.endswith(".tsv") else ","), start)
        elif kind.endswith(".txt"):
            if source.txt == "lines":
                rows = _read_lines(stream, source, start, lambda text: {"text": text})
            else:
                rows = _read_passages(stream, source, start)
        else:
            rows = _read_json(stream, source, start)
        for row in rows:
            has_rows = True
            yield row
    if not has_rows:
        raise UserError(f"{path}: the file holds no rows")


@contextmanager
def _opened(source: Source) -> Iterator[tuple[io.BufferedReader, Source]]:
    """A text file as lines that end with LF, in the encoding of the source returned."""
    with open_binary(source.path) as stream:
        is_json = not re.search(r"\.(csv|tsv|txt)(\.gz|\.zst)?$", source.path.lower())
        beginning = stream.peek(CHUNK) if is_json else b""
        if source.encoding == "utf-16" or (b"\r" in beginning and b"\n" not in beginning):  # lines that end with CR
            stream = io.BufferedReader(Recoded(stream, source.encoding), CHUNK)
            source = replace(source, encoding="utf-8")
        yield stream, source


def note_of(source: Source) -> str:
    """How a text file is read, where its name does not say it; empty where it does."""
    kind = re.sub(r"\.(gz|zst)$", "", source.path.lower())
    if kind.endswith((".tsv", ".txt", ".parquet", ".arrow")):
        return ""
    with suppress(UserError, UnicodeError), _opened(source) as (stream, source):  # reading it raises the error again
        if kind.endswith(".csv"):
            sign = _delimiter_of(stream.peek(CHUNK), ",")
            return "" if sign == "," else f"{'tabs' if sign == TAB else sign} between the columns"
        if _beginning(stream)[:1] == b"{":
            name = _wrapper_of(list(islice(_read_objects(stream, source), 2)))
            return f"rows under {name}" if name else ""
    return ""


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


# pandas writes NaN for nothing.
_decoder = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=lambda name: None if name == "NaN" else float(name)
)
_TRAILING_COMMA = re.compile(r",\s*$")


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


def _decode_lines(
    stream: io.BufferedReader, source: Source, start: tuple[int, int]
) -> Iterator[tuple[str | None, tuple[int, int], int]]:
    """Each line from `start` on, None where it cannot be decoded; the number and offset after it; and its bytes."""
    number, offset = start
    skip(stream, offset)
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number, offset = number + 1, offset + len(raw)
        if len(raw) > MAX_ROW_BYTES:
            raise _too_long(f"{source.path}:{number}")
        try:
            text = raw.decode("utf-8-sig" if number == 1 and source.encoding == "utf-8" else source.encoding)
        except UnicodeDecodeError:
            text = None
        yield text, (number, offset), len(raw)


def _read_lines(
    stream: io.BufferedReader, source: Source, start: tuple[int, int], parse: Callable[[str], dict]
) -> Iterator[Record]:
    for text, after, _ in _decode_lines(stream, source, start):
        location = f"{source.path}:{after[0]}"
        if text is None:
            yield Record(location, problem=f"not {encoding_name(source.encoding)} text", after=after)
            continue
        text = text.strip().removeprefix("\ufeff")  # files with byte order marks may be joined
        position = count = 0
        while position < len(text):
            count += 1
            where = _on_line(location, count)
            try:
                row, position = _row(where, parse(text[position:] if position else text), text), len(text)
            except RecursionError:
                row, position = Record(where, problem="nested too deeply"), len(text)
            except ValueError as error:
                row, position = _broken_line(where, text, position, error)
            row.after = after
            yield row


def _on_line(location: str, count: int) -> str:
    """The location of the row that is the `count`-th of a line."""
    return location if count == 1 else f"{location}, row {count}"


def _broken_line(location: str, text: str, position: int, error: ValueError) -> tuple[Record, int]:
    """The row at `position` of a line that is not one JSON value, and where the next one begins."""
    message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    if message == "Extra data" and text.startswith("{", position + error.pos):  # objects one after the other
        value, end = _decoder.raw_decode(text, position)
        return _row(location, value, text[position:end]), position + error.pos
    if isinstance(error, json.JSONDecodeError) and _TRAILING_COMMA.search(text[position:][: error.pos]):
        message = "a comma before a closing bracket"
    return Record(location, problem=with_detail("broken JSON", message)), len(text)


def _read_passages(stream: io.BufferedReader, source: Source, start: tuple[int, int]) -> Iterator[Record]:
    """What is between blank lines, or begins with 词条："""
    lines: list[str] = []
    location, size, problem, before = "", 0, None, start

    def passage() -> Record:
        # Blank lines stay inside an entry, not around it; `after` is the start of the line that ended it.
        value = None if problem else {"text": "\n".join(lines).strip("\n")}
        return Record(location, value, problem, after=before)

    for text, after, count in _decode_lines(stream, source, start):
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
            raise _too_long(location)
    if lines:
        yield passage()


def _read_json(stream: io.BufferedReader, source: Source, start: tuple[int, int]) -> Iterator[Record]:
    """An array, an object a line, or objects that span lines, by how the file begins."""
    beginning = _beginning(stream)
    if beginning[:1] == b"[":
        yield from _numbered(_read_values(stream, source, in_array=True), start)
    elif SPREAD.match(beginning):
        yield from _numbered(_unwrapped(_read_objects(stream, source), source.path), start)
    elif start[1]:
        yield from _read_lines(stream, source, start, _decoder.decode)
    else:  # a file of one object is numbered by the rows in it
        yield from _unwrapped(_read_objects(stream, source), source.path, start)


def _beginning(stream: io.BufferedReader) -> bytes:
    return stream.peek(4096)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()


def _read_objects(stream: io.BufferedReader, source: Source) -> Iterator[Record]:
    """Objects that span lines, or one a line."""
    if SPREAD.match(_beginning(stream)):
        return _read_values(stream, source, in_array=False)
    return _read_lines(stream, source, BEGIN, _decoder.decode)


def _unwrapped(rows: Iterator[Record], path: str, start: tuple[int, int] = BEGIN) -> Iterator[Record]:
    """`rows`, or where they are one object that holds rows in a list, these: under `data`, or as the Hub's viewer."""
    beginning = list(islice(rows, 2))
    name = _wrapper_of(beginning)
    if name is None:
        yield from (row for row in chain(beginning, rows) if row.after > start or start == BEGIN)
        return
    for number, row in enumerate(beginning[0].value[name], 1):
        location, cut = f"{path}:{number}", row.get("truncated_cells")
        row = row["row"] if isinstance(row.get("row"), dict) else row
        if number > start[0]:
            problem = f"cut by the Hub's viewer: {', '.join(map(str, cut))}" if cut else None
            yield Record(location, None if problem else row, problem, (number, 0))


def _wrapper_of(beginning: list[Record]) -> str | None:
    """The key of the rows in a file that begins with these, where it is one object."""
    value = beginning[0].value if len(beginning) == 1 else None
    return next((name for name in WRAPPERS if value and _are_rows(value.get(name))), None)


def _are_rows(value: Any) -> bool:
    """Whether a value is a list of rows, not of the turns of a conversation."""
    is_list = isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    return is_list and "role" not in value[0] and "from" not in value[0]


_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")
QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _read_values(stream: io.BufferedReader, source: Source, in_array: bool) -> Iterator[Record]:
    """Decode the elements of an array (or objects one after the other), with one chunk and row in memory."""
    path = source.path
    decode = codecs.getincrementaldecoder("utf-8-sig" if source.encoding == "utf-8" else source.encoding)().decode
    text, position, ended = "", 0, False
    line, counted = 1, 0  # `line` is that of the character at `counted`
    number, by_row = 0, False  # rows of an array on one line are counted
    last_line, count = 0, 0  # of the rows so far, and how many of them are on it

    def line_at(index: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, index), index
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
                # A value that continues in the next chunk is cut at the end of this one.
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
        number += 1
        if number == 1 and in_array:
            by_row = "\n" not in text[: _SEPARATOR.match(text, end).end()] and line_at(position) == 1
        count = count + 1 if line == last_line else 1
        last_line = line
        yield _row(f"{path}:{number}" if by_row else _on_line(location, count), value, text[position:end])
        position = end
        if position > CHUNK and not ended:
            more()


def _read_csv(stream: io.BufferedReader, source: Source, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_BYTES)
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    path = source.path
    text = io.TextIOWrapper(stream, encoding, newline="")
    delimiter = _delimiter_of(stream.peek(CHUNK), delimiter)
    reader = csv.reader(_quote_literally(text) if delimiter == TAB else text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        size = len(header)
        while len(header) > 1 and not header[-1]:  # Excel writes empty columns at the end
            header.pop()
        # pandas leaves the name of its index, the first column, empty.
        if len(set(header)) != len(header) or "" in header[1:] or header == [""]:
            raise UserError(f"{path}:1: the header has an empty or a repeated column name: {', '.join(header)}")
        end = reader.line_num
        for fields in reader:
            location, end = f"{path}:{end + 1}", reader.line_num  # a quoted field can span lines
            if len(fields) == size:
                nameless = any(fields[len(header) :])
                problem = "a value in a column without a name" if nameless else None
                yield Record(location, None if nameless else dict(zip(header, fields, strict=False)), problem)
            elif fields:
                more = "more" if len(fields) > size else "fewer"
                yield Record(location, problem=f"{more} fields than the header's {size}")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{reader.line_num + 1}: not {encoding.upper()} text; convert the file") from None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: broken CSV ({error}); mend this line") from None


def _delimiter_of(beginning: bytes, usual: str) -> str:
    """What is between the columns of a csv, where it is not the `usual` sign."""
    header = beginning.partition(b"\n")[0]
    others = (sign for sign in (";", TAB) if usual == "," and b"," not in header and sign.encode() in header)
    return next(others, usual)


def _quote_literally(lines: Iterable[str]) -> Iterator[str]:
    """Lines of tab-separated fields in which a quotation mark that only begins a field is one of its characters.

    Few programs that write such files quote at all. A field is quoted where it ends with a mark, or goes on in the next
    line, which is then no whole row.
    """
    width = 0
    for line, following in pairwise(chain(lines, [""])):
        ending = line[len(line.rstrip("\r\n")) :]
        fields = line.removesuffix(ending).split("\t")
        width = width or len(fields)
        goes_on = following.count("\t") + 1 != width and following != ""
        if len(fields) == width and not goes_on:
            fields = [
                '"' + field.replace('"', '""') + '"' if field[:1] == '"' and not QUOTED.fullmatch(field) else field
                for field in fields
            ]
            line = "\t".join(fields) + ending
        yield line


def _read_arrow(path: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.Dataset.from_file(path)
    except Exception as error:  # Arrow's own kinds and those of the features in its schema
        raise UserError(f"{path}: not a whole Arrow file ({str(error).splitlines()[0]})") from None
    yield from _read_dataset(rows, path)


def _read_dataset(rows: "Dataset", name: str, start: int = 0) -> Iterator[Record]:
    for first in range(start, len(rows), BATCH):
        some, number = rows.select(range(first, min(first + BATCH, len(rows)))), first
        for batch in some.with_format("arrow")[:].to_batches():
            _refuse_long(batch, name, number)
            number += len(batch)
        yield from (Record(f"{name}:{number}", row) for number, row in enumerate(some, first + 1))


def _refuse_long(rows: "RecordBatch", name: str, before: int) -> None:
    """Refuse a row that is too long before Python's objects are made of it; `before`: rows before these."""
    if rows.nbytes <= MAX_ROW_BYTES:
        return
    for index in range(len(rows)):
        # A slice of a dictionary array has the whole dictionary.
        cells = (cell.dictionary_decode() if hasattr(cell, "dictionary") else cell for cell in rows.slice(index, 1))
        if sum(cell.nbytes for cell in cells) > MAX_ROW_BYTES:
            raise _too_long(f"{name}:{before + index + 1}")


def _read_parquet(path: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            most = max((group.total_byte_size // group.num_rows for group in groups if group.num_rows), default=0)
            for batch in file.iter_batches(batch_size=max(1, min(BATCH, 4 * MAX_ROW_BYTES // max(1, most)))):
                _refuse_long(batch, path, number)
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}:{number}", row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    if not number:
        raise UserError(f"{path}: the file holds no rows")
