"""Documents as token ids on disk: a folder a source, with shards that are memory-mapped and a manifest that is checked.

``part-00001.npy`` is the tokens of a shard's documents one after the other, (tokens,) of uint16 or uint32;
``part-00001.ends.npy`` is where each document ends, (documents,) of int64; ``manifest.json`` counts them.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import new_file, write_json
from hf_recipes.data.pretraining.corpora import SHARDS
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder, tokenizer_hash

VERSION = 1
HEADER = 128  # bytes of a .npy file before its values


@dataclass
class Shard:
    """Counts of one shard; `bytes` and `characters` are those of the text."""

    file: str
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    characters: int = 0


class ShardWriter:
    """Writes one shard as documents come; it gets its name in `close`.

    Args:
        path: of the tokens, ``part-00001.npy``.
    """

    def __init__(self, path: str | os.PathLike, dtype: np.dtype):
        self.path, self.dtype = Path(path), np.dtype(dtype)
        self.shard = Shard(self.path.name)
        self._ends: list[int] = []
        self._partial = Path(f"{path}.partial")
        self._file = open(self._partial, "wb")  # noqa: SIM115
        self._file.write(self._header(0))

    def _header(self, size: int) -> bytes:
        import io

        # numpy leaves room in a header for the length to grow, so that it can be written again at the end.
        buffer = io.BytesIO()
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(buffer, description)
        return buffer.getvalue()

    def add(self, ids: Iterable[np.ndarray], texts: Sequence[str]) -> None:
        """Append documents, as token ids and as texts, which are counted."""
        for row, text in zip(ids, texts, strict=True):
            self._file.write(row.astype(self.dtype, copy=False).tobytes())
            self.shard.tokens += len(row)
            self._ends.append(self.shard.tokens)
            self.shard.bytes += len(text.encode())
            self.shard.characters += len(text)
        self.shard.documents = len(self._ends)

    def close(self) -> Shard:
        self._file.seek(0)
        self._file.write(self._header(self.shard.tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with new_file(ends_of(self.path)) as partial, open(partial, "wb") as file:
            np.save(file, np.array(self._ends, np.int64), allow_pickle=False)
        os.replace(self._partial, self.path)
        return self.shard


def ends_of(path: str | os.PathLike) -> Path:
    return Path(path).with_suffix(".ends.npy")


def write_manifest(folder: str | os.PathLike, source: str, encoder: DocumentEncoder, shards: Sequence[Shard]) -> dict:
    """Write ``manifest.json``, last, so that a folder that has one is complete; its content is returned."""
    totals = {
        name: sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens", "bytes", "characters")
    }
    manifest = {"version": VERSION, "source": source, **totals, **encoder.settings}
    manifest["shards"] = [asdict(shard) for shard in shards]
    write_json(Path(folder, SHARDS), manifest, indent=1)
    return manifest


@dataclass
class TokenShards:
    """The documents of one source, opened for random access.

    Args:
        tokens, ends: of each shard, memory-mapped.
        first: (shards + 1,) tokens before each shard.
    """

    name: str
    folder: str
    manifest: dict[str, Any]
    tokens: list[np.ndarray] = field(repr=False)
    ends: list[np.ndarray] = field(repr=False)
    first: np.ndarray = field(repr=False)

    @property
    def documents(self) -> int:
        return self.manifest["documents"]

    def __len__(self) -> int:
        """Number of tokens."""
        return int(self.first[-1])


class Damaged(UserError):
    """Shards that are not as they were written."""


def open_shards(folder: str, name: str, encoder: DocumentEncoder) -> TokenShards:
    """Open a folder that `write_manifest` completed; `Damaged` where a shard is missing or cut short."""
    where = os.path.join(folder, SHARDS)
    try:
        manifest = json.loads(Path(where).read_text(encoding="utf-8"))
        shards = [Shard(**entry) for entry in manifest["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{where}: cannot be read ({error}); run scripts/prepare_corpus.py again") from None
    if manifest.get("version") != VERSION:
        raise UserError(f"{where}: of another version of hf_recipes; run scripts/prepare_corpus.py again")
    if tokenizer_hash(encoder.tokenizer, manifest["vocabulary"]) != manifest["tokenizer"]:
        raise UserError(
            f"{where}: tokenized with another tokenizer ({manifest['vocabulary']:,} tokens; that of this run has "
            f"{encoder.size:,}); run scripts/prepare_corpus.py --tokenize with this run's"
        )
    if manifest["end"] != encoder.end:
        raise UserError(
            f"{where}: its documents end with {manifest['end_token']}, and --document_end_token is {encoder.end_token}"
        )
    if not manifest["documents"]:
        raise UserError(f"{where}: no document is left in source {name}; leave it out")
    tokens, ends, dtype = [], [], np.dtype(manifest["dtype"])
    for shard in shards:
        path = os.path.join(folder, shard.file)
        for file, size in ((path, shard.tokens * dtype.itemsize), (ends_of(path), shard.documents * 8)):
            actual = os.path.getsize(file) if os.path.isfile(file) else None
            if actual != HEADER + size:
                problem = "is missing" if actual is None else f"is cut short or changed ({actual:,} bytes)"
                raise Damaged(
                    f"{file}: this shard {problem}; the manifest says {HEADER + size:,} bytes: fetch it again"
                )
        tokens.append(np.load(path, mmap_mode="r", allow_pickle=False))
        ends.append(np.load(ends_of(path), mmap_mode="r", allow_pickle=False))
    first = np.cumsum([0, *(shard.tokens for shard in shards)])
    return TokenShards(name, folder, manifest, tokens, ends, first)
