"""The rows of files and Hub data sets, with their file and line.

File types are .json (an array, or an object a line), .jsonl, .csv, .tsv, .parquet and .txt, the text ones also as
.gz, .zst or .xz. A broken row becomes a `Record` with a `problem`, for the ledger; a broken file (cut short, not text,
empty) raises `UserError`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import CHUNK, Recoded, open_binary, uncompressed_name
from hf_recipes.data.files.hub_data import load_hub
from hf_recipes.data.files.json_rows import beginning_of, read_json, read_lines, read_objects, table_of
from hf_recipes.data.files.source import BEGIN, Record, Source, numbered
from hf_recipes.data.files.table_rows import TAB, delimiter_of, read_arrow, read_csv, read_dataset, read_parquet
from hf_recipes.data.files.text_rows import read_passages


def read_records(source: Source, start: tuple[int, int] = BEGIN) -> Iterator[Record]:
    """Yield the rows of one source in order, from `start` on: the `after` of an earlier record.

    Where rows are lines, those before are not parsed (of an uncompressed file, not even read).
    """
    if source.draw:
        yield from numbered(_drawn(source), start)
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
    path, kind = source.path, uncompressed_name(source.path)
    if source.split is not None:
        for record in read_dataset(load_hub(path, source.split, source.cache_dir), f"{path}/{source.split}", start[0]):
            record.after = (int(record.location.rpartition(":")[2]), 0)
            yield record
        return
    if kind.endswith(".parquet"):
        yield from numbered(read_parquet(path), start)
        return
    if kind.endswith(".arrow"):
        yield from numbered(read_arrow(path), start)
        return
    has_rows = start != BEGIN
    with _opened(source) as (stream, source):
        if kind.endswith((".csv", ".tsv")):
            rows = numbered(read_csv(stream, source, TAB if kind.endswith(".tsv") else ","), start)
        elif kind.endswith(".txt"):
            if source.txt == "lines":
                rows = read_lines(stream, source, start, lambda text: {"text": text})
            else:
                rows = read_passages(stream, source, start)
        else:
            rows = read_json(stream, source, start)
        for row in rows:
            has_rows = True
            yield row
    if not has_rows:
        raise UserError(f"{path}: the file holds no rows")


@contextmanager
def _opened(source: Source) -> Iterator[tuple[io.BufferedReader, Source]]:
    """A text file as lines that end with LF, in the encoding of the source returned."""
    with open_binary(source.path) as stream:
        is_json = not uncompressed_name(source.path).endswith((".csv", ".tsv", ".txt"))
        beginning = stream.peek(CHUNK) if is_json else b""
        if source.encoding.startswith(("utf-16", "utf-32")) or (
            b"\r" in beginning and b"\n" not in beginning
        ):  # lines that end with CR
            stream = io.BufferedReader(Recoded(stream, source.encoding), CHUNK)
            source = replace(source, encoding="utf-8")
        yield stream, source


def note_of(source: Source) -> str:
    """How a text file is read, where its name does not say it; empty where it does."""
    kind = uncompressed_name(source.path)
    if kind.endswith((".tsv", ".txt", ".parquet", ".arrow")):
        return ""
    with suppress(UserError, UnicodeError), _opened(source) as (stream, source):  # reading it raises the error again
        if kind.endswith(".csv"):
            sign = delimiter_of(stream.peek(CHUNK), ",")
            return "" if sign == "," else f"{'tabs' if sign == TAB else sign} between the columns"
        if beginning_of(stream)[:1] == b"{":
            beginning = list(islice(read_objects(stream, source), 2))
            table = table_of(beginning)
            return table[0] if table else ""
    return ""
