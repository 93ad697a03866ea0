"""Files as streams of bytes: compression, text encoding, and the digest of what is in them."""

import codecs
import gzip
import io
import os
import re
import zlib
from typing import TextIO

from hf_recipes.core.errors import UserError

TEXT_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
COMPRESSED = (".gz", ".zst")
MAX_ROW_BYTES = 16 << 20  # json.loads takes time and ten times the memory; a longer row is a mistake or a bomb
# Refused: over 256 MiB that came out of a 200th of it. Text shrinks to about a tenth; gzip's limit is a 1,032nd.
BOMB_RATIO, BOMB_BYTES = 200, 256 << 20
CHUNK = 1 << 20
VOTES = 100_000  # so many lines with non-ASCII bytes decide the encoding of a file


def open_binary(path: str) -> io.BufferedReader:
    """The content of `path`, decompressed. Reading raises `UserError` for a damaged archive or a bomb."""
    if path.endswith(".zst"):
        return io.BufferedReader(_Unpacked(path, _ZstdStream(path)), CHUNK)
    if path.endswith(".gz"):
        return io.BufferedReader(_Unpacked(path, gzip.open(path, "rb")), CHUNK)
    return open(path, "rb")


def skip(stream: io.BufferedReader, count: int) -> None:
    """Leave out `count` bytes of what `open_binary` opened."""
    if stream.seekable():
        stream.seek(count)
        return
    while count > 0 and (chunk := stream.read(min(count, CHUNK))):
        count -= len(chunk)


def sniff_file(path: str) -> tuple[str, str]:
    """As `digest_and_encoding`, of size, modification time and first MiB: for files too large to be read before use.

    The digest is ``size-nanoseconds-hash``; that of a file that was written again or touched is another one.

    Raises:
        UserError: as there.
    """
    import xxhash

    votes = [0, 0]
    with open_binary(path) as file:
        head = file.read(CHUNK)
    lines = head.split(b"\n")
    _refuse_utf16(path, lines[0])
    # The last line is cut somewhere; of an only one, what stands between quotation marks is whole.
    lines = lines[:-1] or [lines[0][lines[0].find(b'"') : lines[0].rfind(b'"')]]
    for line in lines if _is_text(path) else ():
        if not line.isascii():
            votes[_is_utf8(line)] += 1
    stat = os.stat(path)
    digest = f"{stat.st_size}-{stat.st_mtime_ns}-{xxhash.xxh3_64_hexdigest(head)}"
    return digest, "gb18030" if votes[False] > votes[True] else "utf-8"


def _is_text(path: str) -> bool:
    return path.removesuffix(".gz").removesuffix(".zst").endswith(TEXT_SUFFIXES)


def _refuse_utf16(path: str, head: bytes) -> None:
    if _is_text(path) and head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UserError(f"{path}: UTF-16 text; convert it first: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt")


def digest_and_encoding(path: str) -> tuple[str, str]:
    """xxh3-128 of the content, decompressed, and, in the same pass, the text encoding.

    GB18030 is what a file is in when its lines with non-ASCII bytes are, for the most part, not UTF-8 and the whole is
    GB18030. A UTF-8 file with a few bad lines stays UTF-8; those lines go to the ledger.

    Raises:
        UserError: text in no known encoding, a damaged archive, or a bomb.
    """
    import xxhash

    is_text = _is_text(path)
    digest, votes, rest = xxhash.xxh3_128(), [0, 0], b""

    def vote(lines: list[bytes]) -> None:
        for line in lines:
            if not line.isascii():
                votes[_is_utf8(line)] += 1

    with open_binary(path) as file:
        _refuse_utf16(path, file.peek(2)[:2])
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if not is_text or sum(votes) >= VOTES:
                continue
            block, newline, tail = (rest + chunk).rpartition(b"\n")
            if newline and not block.isascii():
                vote(block.split(b"\n"))
            rest = tail
            if len(tail) > MAX_ROW_BYTES:  # a JSON array on one line; a quotation mark is part of no other character
                vote([tail[tail.find(b'"') : tail.rfind(b'"')]])
                rest = b""
    vote([rest])
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

    Bytes that are no UTF-8 or GB18030 come out as lone surrogates.

    Raises:
        UserError: an empty file, or text in none of these.
    """
    with open_binary(path) as file:
        head = file.read(1 << 12)
    if not head:
        raise UserError(f"{path}: the file is empty")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in head:
        encoding = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
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


class _ZstdStream(io.RawIOBase):
    """Decompresses frame after frame; unlike zstandard's own reader it tells when the last frame is cut short."""

    def __init__(self, path: str):
        import zstandard

        self._new = lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._error = zstandard.ZstdError
        self._file, self._frame = open(path, "rb"), None  # noqa: SIM115
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, target) -> int:
        while not self._pending:
            data = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if self._frame is None or self._frame.eof:
                data = data or self._file.read(1 << 10)  # 1 KiB unpacks to 32 MiB at the most
                if not data:
                    return 0
                self._frame = self._new()
            else:
                data = self._file.read(1 << 10)
                if not data:
                    raise EOFError("the last frame has no end")
            try:
                self._pending = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise EOFError(str(error)) from None
        part = self._pending[: len(target)]
        target[: len(part)] = part
        self._pending = self._pending[len(part) :]
        return len(part)


class _Unpacked(io.RawIOBase):
    """A decompressed stream: its errors name the file, and it is refused once it is out of all proportion to that."""

    def __init__(self, path: str, stream: io.BufferedIOBase | io.RawIOBase):
        self._path, self._stream, self._size, self._read = path, stream, os.path.getsize(path), 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, target) -> int:
        try:
            count = self._stream.readinto(target)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self._path}: the archive is damaged or cut short ({error}); fetch it again") from None
        self._read += count
        if self._read > BOMB_BYTES and self._read > BOMB_RATIO * self._size:
            raise UserError(f"{self._path}: {self._size:,} bytes unpack to more than {self._read:,}; refused as a bomb")
        return count
