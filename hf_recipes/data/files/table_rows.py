"""The rows of tables: csv, tsv, Parquet, Arrow, and data sets that are loaded already."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.file_io import CHUNK, MAX_ROW_BYTES
from hf_recipes.data.files.source import Record, Source, too_long

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import RecordBatch

TAB = "\t"
BATCH = 1000  # rows of a table that are read at a time
QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_csv(stream: io.BufferedReader, source: Source, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_BYTES)
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    path = source.path
    text = io.TextIOWrapper(stream, encoding, newline="")
    delimiter = delimiter_of(stream.peek(CHUNK), delimiter)
    reader = csv.reader(_quote_literally(text) if delimiter == TAB else text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
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


def delimiter_of(beginning: bytes, usual: str) -> str:
    """What is between the columns of a csv, where it is not the `usual` sign."""
    header = beginning.partition(b"\n")[0]
    others = (sign for sign in (";", TAB, "|") if usual == "," and b"," not in header and sign.encode() in header)
    return next(others, usual)


def _quote_literally(lines: Iterable[str]) -> Iterator[str]:
    """Lines of tab-separated fields in which a quotation mark that only begins a field is one of its characters.

    Few programs that write such files quote at all. A field is quoted where it ends with a mark, or continues in the
    next line, which is then no whole row.
    """
    width = 0
    for line, following in pairwise(chain(lines, [""])):
        ending = line[len(line.rstrip("\r\n")) :]
        fields = line.removesuffix(ending).split("\t")
        width = width or len(fields)
        continues = following.count("\t") + 1 != width and following != ""
        if len(fields) == width and not continues:
            fields = [
                '"' + field.replace('"', '""') + '"' if field[:1] == '"' and not QUOTED.fullmatch(field) else field
                for field in fields
            ]
            line = "\t".join(fields) + ending
        yield line


def read_arrow(path: str) -> Iterator[Record]:
    import datasets

    try:
        rows = datasets.Dataset.from_file(path)
    except Exception as error:  # Arrow's own kinds and those of the features in its schema
        raise UserError(f"{path}: not a whole Arrow file ({str(error).splitlines()[0]})") from None
    yield from read_dataset(rows, path)


def read_dataset(rows: "Dataset", name: str, start: int = 0) -> Iterator[Record]:
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
            raise too_long(f"{name}:{before + index + 1}")


def read_parquet(path: str) -> Iterator[Record]:
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
