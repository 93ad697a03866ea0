"""Conversations encoded as they are read, in an order that no number of processes changes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT, is_dropped
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.data.conversations.conversation import RowProblem
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.source import BEGIN, Source
from hf_recipes.data.pretraining.corpora import Document
from hf_recipes.data.pretraining.document_stream import Chunk, Cursor, read_chunks
from hf_recipes.data.pretraining.mixture import Mixture
from hf_recipes.data.pretraining.packing import Blocking
from hf_recipes.data.pretraining.streamed_blocks import ChunkStream
from hf_recipes.data.schemas.columns import Schema, status_of
from hf_recipes.data.tokenized import Encoded

WINDOW_CHUNKS = 8  # of 256 kB of text, among whose rows they are shuffled; resuming encodes them again


@dataclass(frozen=True)
class ConversationReader:
    """How the rows of one file become conversations, as texts of JSON."""

    source: Source
    schema: Schema

    def read(self, start: tuple[int, int] = BEGIN) -> Iterator[Document]:
        for record in read_records(self.source, start):
            text, problem, status = None, None, KEPT
            try:
                example = self.schema.read(record)
                status = status_of(example)
                text = json.dumps([example["messages"], example.get("tools")], ensure_ascii=False)
            except RowProblem as error:
                problem = error.reason
            yield Document(record.location, text, problem, record.after, status=status)


class ConversationEncoder:
    """Encodes the texts of a `ConversationReader`: of each the examples that it makes."""

    def __init__(self, encoder: ChatEncoder):
        self.encoder = encoder

    def encode(self, texts: Sequence[str]) -> list[list[Encoded]]:
        conversations, tools = zip(*map(json.loads, texts), strict=True) if texts else ((), ())
        rows: list[list[Encoded]] = [[] for _ in texts]
        for row in self.encoder.encode(list(conversations), list(tools)):
            rows[row.conversation].append(row)
        return rows


class StreamedRows(ChunkStream):
    """Rows as `input_ids` and `labels`, with their `location`."""

    def _open_window(self):
        rows: list[dict[str, Any]] = []
        first, chunks, epochs = None, 0, 0
        while not rows or chunks < WINDOW_CHUNKS:
            chunk, encoded = self._next_chunk()
            first, last = first or chunk.start, chunk.after
            locations = [location for location, status in chunk.statuses if not is_dropped(status)]
            rows += [
                {"input_ids": row.input_ids, "labels": row.labels, "location": location}
                for location, examples in zip(locations, encoded, strict=True)
                for row in examples
                if not is_dropped(row.status)
            ]
            chunks, epochs = chunks + 1, epochs + chunk.ends_epoch
            if chunk.ends_epoch and rows:
                break
            if epochs > 1:
                raise UserError(f"{self.name}: no row of this source can be used; leave it out")
        self._window_state = {"cursor": asdict(first), "used": 0, "window": self._windows, "left_out": 0}
        self._window_epochs = self._epochs_before(first), self._epochs_before(last)
        self._set_window(rows)

    def _statuses(self, chunk: Chunk, encoded: list[list[Encoded]]) -> Iterator[tuple[str, ...]]:
        examples = iter(encoded)
        for location, before in chunk.statuses:
            after = before if is_dropped(before) else next(examples)[-1].status
            yield (location, after) if is_dropped(after) else (location, before, after)

    def skipped_tokens(self, epochs: float) -> int:
        return 0


class RowMixture(Mixture):
    """The rows of a run in their order, each with its `source`; see `Mixture`.

    Args:
        shares: (S,) of each source in the rows, as integers.
        encoder: whose settings the rows depend on.
    """

    def __init__(self, sources: Sequence[StreamedRows], shares: np.ndarray, seed: int, encoder: ChatEncoder):
        super().__init__(sources, shares, Blocking(1, seed=seed), None)
        self.encoder = encoder

    def settings(self) -> dict[str, Any]:
        return {"seed": self.blocking.seed, "encoding": self.encoder.fingerprint, "sources": self.identity()}

    def _example(self, number: int, ordinal: int) -> dict[str, Any]:
        return {**self.sources[number].next(), "source": number}


def first_rows(readers: Sequence[ConversationReader], encoder: ConversationEncoder) -> tuple[list[Encoded], float]:
    """The rows of a source's first chunk that can be used, and the bytes of text of each row that was read."""
    chunk = next(read_chunks(readers, Cursor()))
    rows = [row for examples in encoder.encode(chunk.texts) for row in examples if not is_dropped(row.status)]
    return rows, sum(len(text.encode()) for text in chunk.texts) / max(1, len(chunk.texts))
