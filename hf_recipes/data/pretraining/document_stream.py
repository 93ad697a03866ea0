"""The documents of a source in chunks, from any position in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import row_status
from hf_recipes.data.files.source import BEGIN
from hf_recipes.data.pretraining.corpora import Reader

CHUNK_BYTES, CHUNK_DOCUMENTS = 1 << 18, 1024  # of text that is tokenized at a time


@dataclass(frozen=True)
class Cursor:
    """A position between two rows of a stream: the epoch, the files done in it, and lines and bytes of the next file.

    `documents` counts those before it in the epoch.
    """

    epoch: int = 0
    file: int = 0
    lines: int = 0
    offset: int = 0
    documents: int = 0

    @property
    def key(self) -> tuple[int, ...]:
        """Orders cursors."""
        return self.epoch, self.file, self.lines


@dataclass
class Chunk:
    """Consecutive documents, with the location and status of each row."""

    start: Cursor
    after: Cursor
    texts: list[str] = field(default_factory=list)
    statuses: list[tuple[str, str]] = field(default_factory=list)
    ends_epoch: bool = False


def file_order(count: int, epoch: int, seed: int | None) -> np.ndarray:
    """The order of `count` files in an epoch; that of their names without a seed."""
    return np.arange(count) if seed is None else np.random.default_rng([seed, 3, epoch]).permutation(count)


def read_chunks(readers: Sequence[Reader], cursor: Cursor, seed: int | None = None) -> Iterator[Chunk]:
    """The documents of the files epoch after epoch, from `cursor` on."""
    chunk, size = Chunk(cursor, cursor), 0
    while True:
        order = file_order(len(readers), cursor.epoch, seed)
        documents = cursor.documents
        for number in range(cursor.file, len(readers)):
            begin = (cursor.lines, cursor.offset) if number == cursor.file else BEGIN
            for document in readers[order[number]].read(begin):
                if document.text is None:
                    chunk.statuses.append((document.location, row_status("dropped", document.problem)))
                else:
                    chunk.statuses.append((document.location, document.status))
                    chunk.texts.append(document.text)
                    documents += 1
                    size += len(document.text.encode())
                if size >= CHUNK_BYTES or len(chunk.statuses) >= CHUNK_DOCUMENTS:
                    chunk.after = Cursor(cursor.epoch, number, *document.after, documents)
                    yield chunk
                    chunk, size = Chunk(chunk.after, chunk.after), 0
        if not documents:
            names = ", ".join(reader.source.path for reader in readers[:3])
            raise UserError(f"{names}: no document is left in this source; leave it out")
        cursor = Cursor(cursor.epoch + 1)
        chunk.after, chunk.ends_epoch = cursor, True
        yield chunk
        chunk, size = Chunk(cursor, cursor), 0
