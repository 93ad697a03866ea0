"""Files as streams of bytes: compression, text encoding, and the digest of what is in them."""

import codecs
import gzip
import io
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from hf_recipes.core.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
COMPRESSED = (".gz", ".zst")
MAX_ROW_BYTES = 16 << 20  # json.loads takes time and ten times the memory; a longer row is a mistake or a bomb
# Refused: over 256 MiB that came out of a 200th of it. Text shrinks to about a tenth; gzip's limit is a 1,032nd.
BOMB_RATIO, BOMB_BYTES = 200, 256 << 20
ZSTD_OPTIONS = {zstd.DecompressionParameter.window_log_max: 31}  # also of `zstd --long=31`
CHUNK = 1 << 20  # bytes read at a time
VOTES = 100_000  # so many lines with non-ASCII bytes decide the encoding of a file


def open_binary(path: str) -> io.BufferedReader:
    """The content of `path`, decompressed. Reading raises `UserError` for a damaged archive or a bomb."""
    if path.endswith(".zst"):
        return io.BufferedReader(_Unpacked(path, zstd.open(path, "rb", options=ZSTD_OPTIONS)), CHUNK)
    if path.endswith(".gz"):
        return io.BufferedReader(_Unpacked(path, gzip.open(path, "rb")), CHUNK)
    return open(path, "rb")


def zstd_writer(path: str | os.PathLike, level: int) -> io.BufferedWriter:
    """A new .zst file. Its lines are compressed a MiB at a time: one by one they take three times as long."""
    return io.BufferedWriter(zstd.open(path, "wb", level=level), CHUNK)


def skip(stream: io.BufferedReader, count: int) -> None:
    """Skip `count` bytes of a stream that `open_binary` opened."""
    if stream.seekable():
        stream.seek(count)
        return
    while count > 0 and (chunk := stream.read(min(count, CHUNK))):
        count -= len(chunk)


def sniff_file(path: str) -> tuple[str, str]:
    """A digest of size, modification time and first MiB, and the encoding guessed from that: for files too large to be
    read before use.

    The digest is ``size-nanoseconds-hash``; it changes when the file is written again or touched.
    """
    import xxhash

    with open_binary(path) as file:
        first_bytes = file.read(CHUNK)
    lines = first_bytes.split(b"\n")
    _refuse_utf16(path, lines[0])
    votes = _votes(lines[:-1] or [_quoted(lines[0])]) if _is_text(path) else Counter()  # the last line is incomplete
    stat = os.stat(path)
    digest = f"{stat.st_size}-{stat.st_mtime_ns}-{xxhash.xxh3_64_hexdigest(first_bytes)}"
    return digest, "gb18030" if votes[False] > votes[True] else "utf-8"


def _votes(lines: Iterable[bytes]) -> Counter[bool]:
    """How many lines with non-ASCII bytes are UTF-8, and how many are not."""
    return Counter(_is_utf8(line) for line in lines if not line.isascii())


def _quoted(line: bytes) -> bytes:
    """An incomplete line up to its last quotation mark, a byte that is part of no other character."""
    return line[line.find(b'"') : line.rfind(b'"')]


def _is_text(path: str) -> bool:
    return path.removesuffix(".gz").removesuffix(".zst").endswith(TEXT_SUFFIXES)


def _refuse_utf16(path: str, first_bytes: bytes) -> None:
    if _is_text(path) and first_bytes[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UserError(f"{path}: UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt")


def digest_and_encoding(path: str) -> tuple[str, str]:
    """xxh3-128 of the content, decompressed, and, in the same pass, the text encoding.

    A file is GB18030 when most lines with non-ASCII bytes are not UTF-8 and all of it decodes as GB18030. A UTF-8 file
    with a few bad lines stays UTF-8; those lines go to the ledger.
    """
    import xxhash

    is_text = _is_text(path)
    digest, votes, rest = xxhash.xxh3_128(), Counter(), b""
    with open_binary(path) as file:
        _refuse_utf16(path, file.peek(2)[:2])
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if not is_text or votes.total() >= VOTES:
                continue
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline and not lines.isascii():
                votes += _votes(lines.split(b"\n"))
            if len(rest) > MAX_ROW_BYTES:  # a JSON array on one line
                votes += _votes([_quoted(rest)])
                rest = b""
    votes += _votes([rest])
    if votes[False] <= votes[True]:
        return digest.hexdigest(), "utf-8"
    decoder = codecs.getincrementaldecoder("gb18030")()
    try:
        with open_binary(path) as file:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: neither UTF-8 nor GB18030 text; convert it to UTF-8 (iconv, or save as UTF-8)"
        ) from None
    return digest.hexdigest(), "gb18030"


def open_text(path: str) -> tuple[TextIO, str]:
    """A text file, and its encoding: UTF-8 or UTF-16, with or without a byte order mark, or GB18030.

    Bytes that are not in that encoding become lone surrogates.
    """
    with open_binary(path) as file:
        first_bytes = file.read(1 << 12)
    if not first_bytes:
        raise UserError(f"{path}: the file is empty")
    if first_bytes.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in first_bytes:
        encoding = "utf-16-le" if first_bytes[1::2].count(0) > first_bytes[::2].count(0) else "utf-16-be"
    else:
        encoding = digest_and_encoding(path)[1].replace("utf-8", "utf-8-sig")
    errors = "strict" if encoding.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(open_binary(path), encoding, errors, newline=""), encoding


def is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class _Unpacked(io.RawIOBase):
    """A decompressed stream whose errors name the file, and which is refused once it is far larger than the file."""

    def __init__(self, path: str, stream: io.BufferedIOBase):
        self._path, self._stream, self._size, self._read = path, stream, os.path.getsize(path), 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, target) -> int:
        try:
            count = self._stream.readinto(target)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise UserError(f"{self._path}: the archive is damaged or cut short ({error}); fetch it again") from None
        self._read += count
        if self._read > BOMB_BYTES and self._read > BOMB_RATIO * self._size:
            raise UserError(f"{self._path}: {self._size:,} bytes unpack to more than {self._read:,}; refused as a bomb")
        return count
