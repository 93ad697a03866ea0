"""Files as streams of bytes: compression, text encoding, and the digest of what is in them."""

import codecs
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from hf_recipes.core.errors import UserError
from hf_recipes.data.files.encodings import encoding_name, likely_encoding, wide_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".csv", ".tsv", ".txt")
COMPRESSED = (".gz", ".zst", ".xz")
MAX_ROW_BYTES = 16 << 20  # json.loads takes time and ten times the memory; a longer row is a mistake or a bomb
# Refused: over 256 MiB that came out of a 200th of it. Text shrinks to about a tenth; gzip's limit is a 1,032nd.
BOMB_RATIO, BOMB_BYTES = 200, 256 << 20
ZSTD_OPTIONS = {zstd.DecompressionParameter.window_log_max: 31}  # also of `zstd --long=31`
CHUNK = 1 << 20  # bytes read at a time
VOTES = 100_000  # so many lines with non-ASCII bytes decide the encoding of a file
SAMPLE_BYTES = 1 << 16  # of lines that are not UTF-8, from which another encoding is guessed
# What other kinds of files begin with, and what to do about them.
SIGNATURES = {
    b"\x1f\x8b": "it is gzip; give its name the ending .gz",
    b"\x28\xb5\x2f\xfd": "it is Zstandard; give its name the ending .zst",
    b"\xfd7zXZ\x00": "it is xz; give its name the ending .xz",
    b"BZh": "it is bzip2; unpack it",
    b"PK\x03\x04": "it is a zip archive or an Excel file; unpack it, or save its sheet as csv",
    b"PAR1": "it is Parquet; give its name the ending .parquet",
    b"version https://git-lfs": "it is a git-lfs pointer, not the data; fetch the data with git lfs pull",
}


def open_binary(path: str) -> io.BufferedReader:
    """The content of `path`, decompressed. Reading raises `UserError` for a damaged archive or a bomb."""
    if path.lower().endswith(".zst"):
        return io.BufferedReader(_Unpacked(path, zstd.open(path, "rb", options=ZSTD_OPTIONS)), CHUNK)
    if path.lower().endswith((".gz", ".xz")):
        module = gzip if path.lower().endswith(".gz") else lzma
        return io.BufferedReader(_Unpacked(path, module.open(path, "rb")), CHUNK)
    return open(path, "rb")


def uncompressed_name(path: str) -> str:
    """A path in lower case, without the ending of a compression."""
    ending = next((ending for ending in COMPRESSED if path.lower().endswith(ending)), "")
    return path.lower().removesuffix(ending)


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
    votes = _Votes()
    encoding = _signed_encoding(path, first_bytes)
    if _is_text(path) and encoding is None:
        lines = first_bytes.split(b"\n")
        is_cut = len(first_bytes) == CHUNK
        votes.add(lines[:-1] if is_cut and lines[:-1] else lines, is_cut and len(lines) == 1)
    stat = os.stat(path)
    digest = f"{stat.st_size}-{stat.st_mtime_ns}-{xxhash.xxh3_64_hexdigest(first_bytes)}"
    return digest, encoding or votes.encoding


class _Votes:
    """How many lines with non-ASCII bytes are UTF-8, and the first of those that are not."""

    def __init__(self):
        self.counts, self.sample = Counter(), bytearray()

    def add(self, lines: Iterable[bytes], is_cut: bool = False) -> None:
        """Count lines, the last of which may be cut in the middle of a character."""
        for line in lines:
            if line.isascii():
                continue
            is_utf8 = _is_utf8(line, is_cut)
            self.counts[is_utf8] += 1
            if not is_utf8 and len(self.sample) < SAMPLE_BYTES:
                self.sample += line[:SAMPLE_BYTES] + (b"\n" if len(line) < SAMPLE_BYTES else b"")

    @property
    def encoding(self) -> str:
        return likely_encoding(bytes(self.sample)) if self.counts[False] > self.counts[True] else "utf-8"


def _quoted(line: bytes) -> bytes:
    """An incomplete line up to its last quotation mark, a byte that is part of no other character."""
    return line[line.find(b'"') : line.rfind(b'"')]


def _is_text(path: str) -> bool:
    return uncompressed_name(path).endswith(TEXT_SUFFIXES)


def _signed_encoding(path: str, first_bytes: bytes) -> str | None:
    """The encoding that the first bytes show.

    Raises:
        UserError: the file is of another kind than its name says.
    """
    if not _is_text(path):
        return None
    for signature, problem in SIGNATURES.items():
        if first_bytes.startswith(signature):
            raise UserError(f"{path}: {problem}")
    return wide_encoding(first_bytes)


def digest_and_encoding(path: str, encoding: str | None = None) -> tuple[str, str]:
    """xxh3-128 of the content, decompressed, and, in the same pass, the text encoding, unless it is known.

    A file is in another encoding than UTF-8 when most lines with non-ASCII bytes are not UTF-8 and all of it decodes. A
    UTF-8 file with a few bad lines stays UTF-8; those lines go to the ledger.
    """
    import xxhash

    is_text = _is_text(path)
    digest, votes, rest = xxhash.xxh3_128(), _Votes(), b""
    with open_binary(path) as file:
        signed = encoding or _signed_encoding(path, file.peek(1 << 12))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if not is_text or signed or votes.counts.total() >= VOTES:
                continue
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline and not lines.isascii():
                votes.add(lines.split(b"\n"))
            if len(rest) > MAX_ROW_BYTES:  # a JSON array on one line
                votes.add([_quoted(rest)])
                rest = b""
    votes.add([rest])
    encoding = signed or votes.encoding
    if is_text and encoding != "utf-8":
        check_encoding(path, encoding)
    return digest.hexdigest(), encoding


def check_encoding(path: str, encoding: str) -> None:
    """Raise a UserError unless all of a file decodes."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with open_binary(path) as file:
            while chunk := file.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: not UTF-8 text, and not all of it is {encoding_name(encoding)}, which fits best; convert "
            "the file to UTF-8 (iconv, or save as UTF-8), or name its encoding where a command has --encoding"
        ) from None


class Recoded(io.RawIOBase):
    """A stream of text in another encoding as UTF-8, with lines that end in LF, so that it can be read line by line."""

    def __init__(self, stream: io.BufferedReader, encoding: str):
        self._stream = stream
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
        self._pending, self._ended = memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while not self._pending and not self._ended:
            chunk = self._stream.read(CHUNK)
            self._ended = not chunk
            self._pending = memoryview(self._decoder.decode(chunk, final=self._ended).encode("utf-8"))
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


def open_text(path: str) -> tuple[TextIO, str]:
    """A text file, and its encoding: UTF-8 or UTF-16, with or without a byte order mark, or GB18030.

    Bytes that are not in that encoding become lone surrogates.
    """
    with open_binary(path) as file:
        first_bytes = file.read(1 << 12)
    if not first_bytes:
        raise UserError(f"{path}: the file is empty")
    encoding = wide_encoding(first_bytes) or digest_and_encoding(path)[1].replace("utf-8", "utf-8-sig")
    errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return io.TextIOWrapper(open_binary(path), encoding, errors, newline=""), encoding


def is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _is_utf8(line: bytes, is_cut: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line, final=not is_cut)
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
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError, lzma.LZMAError) as error:
            raise UserError(f"{self._path}: the archive is damaged or cut short ({error}); fetch it again") from None
        self._read += count
        if self._read > BOMB_BYTES and self._read > BOMB_RATIO * self._size:
            raise UserError(f"{self._path}: {self._size:,} bytes unpack to more than {self._read:,}; refused as a bomb")
        return count
