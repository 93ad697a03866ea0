"""Files, folders and Hub ids as rows that know their file and line.

Read are .json (an array, or an object a line), .jsonl, .csv, .tsv, .parquet and .txt, the text ones also as .gz or
.zst. A row that is broken by itself is handed on as a `Record` with a `problem`, for the ledger; what spoils a whole
file (cut short, not text, empty) is a `UserError`.
"""

import codecs
import csv
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_recipes.errors import UserError

TEXT_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
SUFFIXES = (*TEXT_SUFFIXES, *(s + z for s in TEXT_SUFFIXES for z in (".gz", ".zst")), ".parquet")
MAX_ROW_BYTES = 16 << 20  # json.loads takes time and ten times the memory; a longer row is a mistake or a bomb
BOMB_RATIO, BOMB_BYTES = 1000, 256 << 20  # refused: over 256 MiB that came out of a thousandth of it
CHUNK = 1 << 20


@dataclass(slots=True)
class Record:
    """One row: its `value`, or the `problem` that keeps it from having one, at ``file:line``."""

    place: str
    value: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """A file or Hub data set, with the digest of its content (so that no cache can go stale)."""

    path: str
    digest: str
    encoding: str = "utf-8"
    on_hub: bool = False


def find_sources(specs: Sequence[str], revision: str | None = None) -> list[Source]:
    """Expand files, globs, folders (recursively, in sorted order) and Hub ids (``owner/name``).

    Raises:
        UserError: nothing there, an unknown file type, an empty file, or text in no known encoding.
    """
    sources = []
    for spec in specs:
        if os.path.isdir(spec):
            paths = sorted(str(p) for p in Path(spec).rglob("*") if p.name.endswith(SUFFIXES) and p.is_file())
            if not paths:
                raise UserError(f"{spec}: no data file in this folder (looked for {', '.join(SUFFIXES)})")
        elif os.path.isfile(spec):
            paths = [spec]
        else:
            paths = sorted(path for path in glob.glob(spec, recursive=True) if os.path.isfile(path))
        if not paths:
            if re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and not spec.endswith(SUFFIXES) and not _is_below_folder(spec):
                sources.append(_hub_source(spec))
                continue
            raise UserError(f"{spec}: no such file, folder or glob")
        sources += [_file_source(path) for path in paths]
    return sources


def _is_below_folder(spec: str) -> bool:
    return os.path.isdir(spec.split("/")[0])


def _hub_source(name: str) -> Source:
    return Source(name, _load_hub(name)._fingerprint, on_hub=True)


def _load_hub(name: str):
    from datasets import load_dataset

    try:
        return load_dataset(name, split="train")
    except Exception as error:  # the Hub client raises a dozen kinds; all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: neither a local file or folder, nor to be had from the Hub ({reason})") from None


def _file_source(path: str) -> Source:
    if not path.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown file type; known are {', '.join(SUFFIXES)}")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the file is empty")
    digest, encoding = _digest_and_encoding(path, is_text=path.endswith(TEXT_SUFFIXES))
    return Source(path, digest, encoding)


def _digest_and_encoding(path: str, is_text: bool) -> tuple[str, str]:
    """xxh3-128 of the content and, in the same pass, the text encoding.

    GB18030 is what a file is in when its lines with non-ASCII bytes are, for the most part, not UTF-8 and the whole is
    GB18030. A UTF-8 file with a few bad lines stays UTF-8; those lines go to the ledger.
    """
    import xxhash

    digest, good, bad = xxhash.xxh3_128(), 0, 0
    with open(path, "rb") as file:
        head = file.read(4)
        if is_text and head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{path}: UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt")
        file.seek(0)
        rest = b""
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if not is_text:
                continue
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > MAX_ROW_BYTES:  # one endless line: a JSON array, decoded as it is read
                rest = b""
            for line in lines:
                if not line.isascii():
                    good, bad = (good + 1, bad) if _is_utf8(line) else (good, bad + 1)
    if rest and not rest.isascii():
        good, bad = (good + 1, bad) if _is_utf8(rest) else (good, bad + 1)
    if bad <= good:
        return digest.hexdigest(), "utf-8"
    decoder = codecs.getincrementaldecoder("gb18030")()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: neither UTF-8 nor GB18030 text; convert it to UTF-8 (iconv, or save as UTF-8)"
        ) from None
    return digest.hexdigest(), "gb18030"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_records(source: Source) -> Iterator[Record]:
    """Yield the rows of one source in order.

    Raises:
        UserError: the file is cut short, damaged, or holds no row at all.
    """
    path, kind = source.path, re.sub(r"\.(gz|zst)$", "", source.path)
    if source.on_hub:
        yield from (Record(f"{path}:{i}", row) for i, row in enumerate(_load_hub(path), 1))
        return
    if kind.endswith(".parquet"):
        yield from _read_parquet(path)
        return
    found = False
    try:
        with _open_binary(path) as stream:
            if kind.endswith((".csv", ".tsv")):
                rows = _read_csv(stream, source, "\t" if kind.endswith(".tsv") else ",")
            elif kind.endswith(".txt"):
                rows = _read_lines(stream, source, lambda text: {"text": text})
            else:
                rows = _read_json(stream, source)
            for row in rows:
                found = True
                yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the archive is damaged or cut short ({error}); fetch it again") from None
    if not found:
        raise UserError(f"{path}: the file holds no rows")


class _ZstdStream(io.RawIOBase):
    """Decompresses frame after frame; unlike zstandard's own reader it tells when the last frame is cut short."""

    def __init__(self, path: str):
        import zstandard

        self._new = lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._error = zstandard.ZstdError
        self._file, self._frame = open(path, "rb"), None  # noqa: SIM115
        self._pending = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, target) -> int:
        while not self._pending:
            data = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if self._frame is None or self._frame.eof:
                data = data or self._file.read(1 << 14)
                if not data:
                    return 0
                self._frame = self._new()
            else:
                data = self._file.read(1 << 14)
                if not data:
                    raise EOFError("the last frame has no end")
            try:
                self._pending = self._frame.decompress(data)
            except self._error as error:
                raise EOFError(str(error)) from None
        part = self._pending[: len(target)]
        target[: len(part)] = part
        self._pending = self._pending[len(part) :]
        return len(part)


class _BombGuard(io.RawIOBase):
    """Refuses a compressed stream once it has grown out of all proportion to its file."""

    def __init__(self, path: str, stream: io.BufferedIOBase | io.RawIOBase):
        self._path, self._stream, self._size, self._read = path, stream, os.path.getsize(path), 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, target) -> int:
        count = self._stream.readinto(target)
        self._read += count
        if self._read > BOMB_BYTES and self._read > BOMB_RATIO * self._size:
            raise UserError(f"{self._path}: {self._size:,} bytes unpack to more than {self._read:,}; refused as a bomb")
        return count


def _open_binary(path: str) -> io.BufferedReader:
    if path.endswith(".zst"):
        return io.BufferedReader(_BombGuard(path, _ZstdStream(path)), CHUNK)
    if path.endswith(".gz"):
        return io.BufferedReader(_BombGuard(path, gzip.open(path, "rb")), CHUNK)
    return open(path, "rb")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(k for k in keys if keys.count(k) > 1)!r}")
    return value


_decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates)


def _row(place: str, value: Any, text: str) -> Record:
    if not isinstance(value, dict):
        return Record(place, problem="not a JSON object")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return Record(place, problem="half a surrogate pair (\\ud800 to \\udfff)")
    return Record(place, value)


def _too_long(place: str) -> UserError:
    return UserError(f"{place}: this row is longer than {MAX_ROW_BYTES >> 20} MiB; split it or take it out")


def _read_lines(stream: io.BufferedReader, source: Source, parse: Callable[[str], dict]) -> Iterator[Record]:
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        place = f"{source.path}:{number}"
        if len(raw) > MAX_ROW_BYTES:
            raise _too_long(place)
        try:
            text = raw.decode("utf-8-sig" if number == 1 and source.encoding == "utf-8" else source.encoding).strip()
        except UnicodeDecodeError:
            yield Record(place, problem=f"not {source.encoding.upper()} text")
            continue
        if not text:
            continue
        try:
            value = parse(text)
        except RecursionError:
            yield Record(place, problem="nested too deeply")
        except ValueError as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield Record(place, problem=f"broken JSON ({message})")
        else:
            yield _row(place, value, text)


def _read_json(stream: io.BufferedReader, source: Source) -> Iterator[Record]:
    """An array, objects a line, or objects that span lines: told apart by how the file begins."""
    head = stream.peek(4096)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()
    if head[:1] == b"[":
        yield from _read_values(stream, source, in_array=True)
    elif re.match(rb"\{\s*\n", head):
        yield from _read_values(stream, source, in_array=False)
    else:
        yield from _read_lines(stream, source, _decoder.decode)


_SPACE = re.compile(r"[\s]*")
_SEPARATOR = re.compile(r"[\s,]*")


def _read_values(stream: io.BufferedReader, source: Source, in_array: bool) -> Iterator[Record]:
    """Decode the elements of an array (or objects one after the other) without holding more than one chunk and row."""
    path = source.path
    decode = codecs.getincrementaldecoder("utf-8-sig" if source.encoding == "utf-8" else source.encoding)().decode
    text, position, ended = "", 0, False
    line, counted = 1, 0  # `line` is that of the character at `counted`

    def line_at(place: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, place), place
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
    while True:
        position = _SEPARATOR.match(text, position).end()
        if position == len(text) and not ended:
            more()
            continue
        if position == len(text) and not in_array:
            return
        place = f"{path}:{line_at(position)}"
        if position == len(text):
            raise UserError(f"{place}: the JSON array is cut short (no closing bracket); fetch or export it again")
        if in_array and text[position] == "]":
            rest = text[position + 1 :]
            if rest.strip():
                raise UserError(f"{place}: there is more after the end of the JSON array")
            return
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
                    raise _too_long(place) from None
                where = f"{path}:{line_at(at)}"
                if is_open:
                    raise UserError(f"{where}: cut short in the middle of a row; fetch it again") from None
                raise UserError(f"{where}: broken JSON ({message}); mend this line") from None
        yield _row(place, value, text[position:end])
        position = end
        if position > CHUNK and not ended:
            more()


def _read_csv(stream: io.BufferedReader, source: Source, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_ROW_BYTES)
    encoding = "utf-8-sig" if source.encoding == "utf-8" else source.encoding
    path = source.path
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
    try:
        header = reader.fieldnames or []
        if len(set(header)) != len(header) or "" in header:
            raise UserError(f"{path}:1: the header has an empty or a repeated column name: {', '.join(header)}")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row:
                yield Record(place, problem=f"more fields than the header's {len(header)}")
            elif None in row.values():
                yield Record(place, problem=f"fewer fields than the header's {len(header)}")
            else:
                yield Record(place, row)
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
