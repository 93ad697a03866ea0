"""The rows of JSON files: an array, an object a line, objects that span lines, or one object that holds rows."""

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import with_detail
from hf_recipes.data.files.encodings import encoding_name
from hf_recipes.data.files.file_io import CHUNK, MAX_ROW_BYTES
from hf_recipes.data.files.source import BEGIN, Record, Source, numbered, too_long
from hf_recipes.data.files.text_rows import decode_lines

# Keys of the rows in a file that is one object, in any case (Navicat writes RECORDS).
WRAPPERS = (
    *("data", "rows", "examples", "instances", "train", "items", "records"),
    *("samples", "list", "results", "example", "dataset", "entries", "articles"),
    *("数据", "数据集"),
)
# Other keys of an object that holds rows.
ABOUT_FILE = {"version", "name", "description", "info", "license", "total", "count", "code", "msg", "message", "status"}
_OF_TURNS = re.compile("conv|dialog|message|msg|chat|turn|history|对话|历史")  # in the keys of lists that are one row
_WITH_DIGIT = re.compile(r"\d")
SPREAD = re.compile(rb"\{\s*\n")  # how a file of objects that span lines begins
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")
_TRAILING_COMMA = re.compile(r",\s*$")


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


def _row(location: str, value: Any, text: str) -> Record:
    if not isinstance(value, dict):
        rather = ' but an array: write {"messages": […]}' if isinstance(value, list) else ""
        return Record(location, problem=f"not a JSON object{rather}")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Record(location, problem="half a surrogate pair (\\ud800 to \\udfff)")
    return Record(location, value)


def read_lines(
    stream: io.BufferedReader, source: Source, start: tuple[int, int], parse: Callable[[str], dict]
) -> Iterator[Record]:
    for text, after, _ in decode_lines(stream, source, start):
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


def read_json(stream: io.BufferedReader, source: Source, start: tuple[int, int]) -> Iterator[Record]:
    """An array, an object a line, or objects that span lines, by how the file begins."""
    beginning = beginning_of(stream)
    if beginning[:1] == b"[":
        yield from numbered(_read_values(stream, source, in_array=True), start)
    elif SPREAD.match(beginning):
        yield from numbered(_unwrapped(read_objects(stream, source), source.path), start)
    elif start[1]:
        yield from read_lines(stream, source, start, _decoder.decode)
    else:  # a file of one object is numbered by the rows in it
        yield from _unwrapped(read_objects(stream, source), source.path, start)


def beginning_of(stream: io.BufferedReader) -> bytes:
    return stream.peek(4096)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()


def read_objects(stream: io.BufferedReader, source: Source) -> Iterator[Record]:
    """Objects that span lines, or one a line."""
    if SPREAD.match(beginning_of(stream)):
        return _read_values(stream, source, in_array=False)
    return read_lines(stream, source, BEGIN, _decoder.decode)


def _unwrapped(rows: Iterator[Record], path: str, start: tuple[int, int] = BEGIN) -> Iterator[Record]:
    """`rows`, or where they are one object that holds rows in a list, these: under `data`, or as the Hub's viewer."""
    beginning = list(islice(rows, 2))
    table = table_of(beginning)
    if table is None:
        yield from (row for row in chain(beginning, rows) if row.after > start or start == BEGIN)
        return
    for number, row in enumerate(table[1], 1):
        location, cut = f"{path}:{number}", row.get("truncated_cells")
        row = row["row"] if isinstance(row.get("row"), dict) else row
        if number > start[0]:
            problem = f"cut by the Hub's viewer: {', '.join(map(str, cut))}" if cut else None
            yield Record(location, None if problem else row, problem, (number, 0))


def table_of(beginning: list[Record]) -> tuple[str, list[dict]] | None:
    """How a file that begins with these holds its rows, where it is one object, and these; None for another file.

    They are a list under a key, also of an object within; the values under their ids; or columns, as `to_json` of
    pandas writes them and `to_dict` of datasets.
    """
    value = beginning[0].value if len(beginning) == 1 else None
    return _table_in(value) if value else None


def _table_in(value: dict[str, Any]) -> tuple[str, list[dict]] | None:
    table = _rows_under(value) or _rows_of_objects(value) or _rows_of_lists(value)
    within = [key for key in value if isinstance(value[key], dict)]
    is_wrapped = len(within) == 1 and within[0].lower() in WRAPPERS and ABOUT_FILE.issuperset(value.keys() - {*within})
    return _table_in(value[within[0]]) if table is None and is_wrapped else table


def _rows_under(value: dict[str, Any]) -> tuple[str, list[dict]] | None:
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)}
    if any({"role", "from"} & {key.lower() for key in rows[0]} for rows in lists.values()):
        return None
    lists = {key: rows for key, rows in lists.items() if all(isinstance(row, dict) for row in rows)}
    names = {name.lower(): name for name in lists}
    name = next((names[known] for known in WRAPPERS if known in names), None)
    if name is None:
        return None
    others = ", ".join(other for other in lists if other != name)
    return f"rows under {name}" + (f" (not read: {others})" if others else ""), lists[name]


def _rows_of_objects(value: dict[str, Any]) -> tuple[str, list[dict]] | None:
    values = list(value.values())
    if len(values) < 2 or not all(isinstance(each, dict) and each for each in values):
        return None
    if all(key.isdigit() for each in values for key in each):
        keys = dict.fromkeys(key for each in values for key in each)
        return "columns as objects", [{name: value[name].get(key) for name in value} for key in keys]
    are_rows = all(map(_WITH_DIGIT.search, value)) and len({*map(tuple, values)}) == 1
    return ("rows under their ids", values) if are_rows else None


def _rows_of_lists(value: dict[str, Any]) -> tuple[str, list[dict]] | None:
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return "rows as lists under data", [dict(zip(map(str, columns), row, strict=False)) for row in data]
    values = list(value.values())
    if len(values) < 2 or any(map(_OF_TURNS.search, value)) or not all(isinstance(each, list) for each in values):
        return None
    are_columns = len({*map(len, values)}) == 1 < len(values[0])
    if not are_columns or any(isinstance(cell, (list, dict)) for each in values for cell in each):
        return None
    return "columns as lists", [dict(zip(value, row, strict=True)) for row in zip(*values, strict=True)]


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
                raise UserError(
                    f"{location}: there is more after the end of the JSON array; write each row as an object"
                )
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
                    raise too_long(location) from None
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
