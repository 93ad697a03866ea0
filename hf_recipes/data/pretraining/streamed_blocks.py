"""Documents tokenized as they are read, in an order that no number of processes changes.

All processes read all documents; each tokenizes its share of the chunks and gets the others from the other processes.
Reading takes a thirtieth of the time of tokenizing. So a stream has one order, and each block of a run is the same
block at any number of processes and workers, and after any number of restarts.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.pretraining.document_stream import Chunk, Cursor, file_order, read_chunks
from hf_recipes.data.pretraining.packing import Block, Blocking, BlockSource, pack
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization

WINDOW_TOKENS = 1 << 17  # blocks are shuffled among so many tokens; resuming tokenizes them again, in about 0.2 s


@dataclass
class _TokenizedChunk:
    """A chunk of documents as tokens, of which the first `used` kept ones are in blocks."""

    start: Cursor
    after: Cursor
    locations: list[str]
    ids: list[np.ndarray]
    ends: np.ndarray  # where each document ends among the chunk's kept tokens
    ends_epoch: bool
    used: int = 0

    @property
    def unused(self) -> int:
        return (int(self.ends[-1]) if len(self.ends) else 0) - self.used


class ChunkStream(BlockSource):
    """A `BlockSource` of files that are read while training: blocks, or rows, without end, from any `state` on.

    They are made in windows, among which they are shuffled, of chunks of documents.

    Args:
        seed: of the order of the files in each epoch and within each window; None leaves both as they are.
        on_row: called with the location and the statuses of each row of the first epoch.
    """

    is_stream = True

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        tokenization: Tokenization,
        seed: int | None = None,
        on_row: Callable[..., None] = lambda location, *statuses: None,
    ):
        self.name, self.readers = name, list(readers)
        self.tokenization, self.seed, self.on_row = tokenization, seed, on_row
        self._sizes = np.array([os.path.getsize(r.source.path) if r.source.split is None else 1 for r in readers])
        self.start_at(None)

    def start_at(self, state: dict[str, Any] | None) -> None:
        """Restart at `state`, or at the beginning: read again from its cursor, and skip what was returned already."""
        beginning = asdict(Cursor())
        state = state or {"cursor": beginning, "told": beginning, "used": 0, "window": 0, "given": 0, "left_out": 0}
        self._chunks = read_chunks(self.readers, Cursor(**state["cursor"]), self.seed)
        self._pending: deque = deque()
        self._submitted = self._received = 0
        self._reported = Cursor(**state["told"])  # rows before it were passed to `on_row`
        self._windows = state["window"]
        self._window: list = []
        self._window_state = {name: state[name] for name in ("cursor", "used", "window", "left_out")}
        self._returned = 0
        self._window_epochs = (0.0, 0.0)  # passes over the source before and after the window
        self._skip = state["given"]  # of the first window

    def state(self) -> dict[str, Any]:
        return {**self._window_state, "given": self._returned + self._skip, "told": asdict(self._reported)}

    def epochs(self, blocks: int) -> float:
        """Passes over the source up to what was returned last, by the sizes of its files."""
        begin, end = self._window_epochs
        return begin + (end - begin) * self._returned / max(1, len(self._window))

    def content(self) -> list:
        return [[os.path.basename(reader.source.path), reader.source.digest] for reader in self.readers]

    def close(self) -> None:
        self.tokenization.close()

    def _epochs_before(self, cursor: Cursor) -> float:
        sizes = self._sizes[file_order(len(self.readers), cursor.epoch, self.seed)]
        done = sizes[: cursor.file].sum()
        if cursor.file < len(sizes):
            done += min(cursor.offset, sizes[cursor.file])
        return cursor.epoch + float(done / max(1, sizes.sum()))

    def block(self, ordinal: int, shuffle: Sequence[int] | None):
        return self.next()

    def next(self):
        if self._returned >= len(self._window):
            self._open_window()
            self._returned, self._skip = self._skip, 0
        if self._returned >= len(self._window):  # a state at the end of its window
            self._open_window()
        self._returned += 1
        return self._window[self._returned - 1]

    def _open_window(self) -> None:
        """Make the next `_window`, with `_window_state` and `_window_epochs`; a window ends with its epoch."""
        raise NotImplementedError

    def _set_window(self, items: list) -> None:
        if self.seed is not None:
            order = np.random.default_rng([self.seed, 4, self._windows]).permutation(len(items))
            items = [items[index] for index in order]
        self._window, self._returned, self._windows = items, 0, self._windows + 1

    def _next_chunk(self) -> tuple[Chunk, list]:
        """The next chunk, and what its texts are encoded as; the following ones are submitted before their time."""
        ahead = self.tokenization.world * (1 + 2 * self.tokenization.workers)
        while len(self._pending) < ahead:
            chunk = next(self._chunks)
            self._pending.append((chunk, self.tokenization.submit(chunk.texts, self._submitted)))
            self._submitted += 1
        chunk, pending = self._pending.popleft()
        encoded = self.tokenization.result(pending, self._received)
        self._received += 1
        if chunk.start.epoch == 0 and chunk.start.key >= self._reported.key:
            for location, *statuses in self._statuses(chunk, encoded):
                self.on_row(location, *statuses)
            self._reported = chunk.after
        return chunk, encoded

    def _statuses(self, chunk: Chunk, encoded: list) -> Iterable[Sequence[str]]:
        """Location and statuses of each row of a chunk."""
        return chunk.statuses


class StreamedBlocks(ChunkStream):
    """Blocks of tokens; see `ChunkStream`."""

    def __init__(
        self, name: str, readers: Sequence[Reader], blocking: Blocking, tokenization: Tokenization, *args, **kwargs
    ):
        self.blocking = blocking
        super().__init__(name, readers, tokenization, *args, **kwargs)
        self._window_blocks = max(1, WINDOW_TOKENS // blocking.size) if self.seed is not None else 1

    def start_at(self, state):
        super().start_at(state)
        self._tokenized: deque[_TokenizedChunk] = deque()
        self._used, self._skipped_tokens = self._window_state["used"], self._window_state["left_out"]
        self._epochs_done = 0

    def skipped_tokens(self, epochs: float) -> int:
        """Tokens skipped up to the last block returned."""
        before = self._window_state["left_out"]
        return before + round((self._skipped_tokens - before) * self._returned / max(1, len(self._window)))

    def _epochs_at(self, chunk: _TokenizedChunk) -> float:
        begin, end = (self._epochs_before(cursor) for cursor in (chunk.start, chunk.after))
        return begin + (end - begin) * chunk.used / max(1, chunk.used + chunk.unused)

    def _open_window(self) -> None:
        """Make the next blocks, which are shuffled among each other; a window ends with its epoch."""
        chunk = self._current()
        cursor = {"cursor": asdict(chunk.start), "used": chunk.used, "window": self._windows}
        self._window_state = {**cursor, "left_out": self._skipped_tokens}
        begin = self._epochs_at(chunk)
        blocks: list[Block] = []
        epochs = 0
        while len(blocks) < self._window_blocks and not (epochs and blocks):
            block, ends_epoch = self._make_block()
            if block is not None:
                blocks.append(block)
            epochs += ends_epoch
            if epochs > 1 and not blocks:
                raise UserError(
                    f"{self.name}: the source is shorter than one block of {self.blocking.size} tokens; "
                    "lower --block_size, or leave --drop_last out"
                )
        self._set_window(blocks)
        end = self._epochs_at(self._tokenized[0]) if self._tokenized else float(self._epochs_done)
        self._window_epochs = begin, end

    def _current(self) -> _TokenizedChunk:
        """The chunk of the next token."""
        while True:
            if not self._tokenized:
                self._tokenized.append(self._receive())
                self._tokenized[0].used, self._used = self._used, 0
            chunk = self._tokenized[0]
            if chunk.unused or chunk.ends_epoch:
                return chunk
            self._tokenized.popleft()

    def _make_block(self) -> tuple[Block | None, bool]:
        """The next block of the epoch, None where nothing is left of it, and whether the epoch ends with it."""
        spans, missing, ends_epoch, location = [], self.blocking.size, False, ""
        while missing and not ends_epoch:
            chunk = self._current()
            while missing and chunk.unused:
                ids, before, where = self._next_span(chunk, missing)
                spans.append((ids, before))
                location = location or f"from {where} on"
                missing -= len(ids)
            if not chunk.unused and chunk.ends_epoch:
                self._tokenized.popleft()
                ends_epoch, self._epochs_done = True, chunk.start.epoch + 1
        block = pack(spans, self.blocking, location)
        if missing and self.blocking.drop_last:
            self._skipped_tokens += len(block.ids)
            return None, ends_epoch
        return block if spans else None, ends_epoch

    def _next_span(self, chunk: _TokenizedChunk, size: int) -> tuple[np.ndarray, int, str]:
        """Up to `size` tokens of the chunk's next document, its kept tokens before them, and its location."""
        document = int(np.searchsorted(chunk.ends, chunk.used, "right"))
        begin = int(chunk.ends[document - 1]) if document else 0
        before, stop = chunk.used - begin, min(int(chunk.ends[document]), chunk.used + size)
        ids = chunk.ids[document]
        start = before + self.blocking.skipped(len(ids), chunk.start.epoch, chunk.start.documents + document)
        span = ids[start : start + stop - chunk.used]
        chunk.used = stop
        if stop == chunk.ends[document]:
            self._skipped_tokens += len(ids) - (stop - begin)
        return span, before, chunk.locations[document]

    def _receive(self) -> _TokenizedChunk:
        """The next chunk, tokenized."""
        chunk, ids = self._next_chunk()
        lengths = np.array([len(row) for row in ids], np.int64)
        if self.blocking.shortens:
            lengths = np.minimum(lengths, self.blocking.size)
        locations = [location for location, status in chunk.statuses if status == KEPT]
        return _TokenizedChunk(chunk.start, chunk.after, locations, ids, np.cumsum(lengths), chunk.ends_epoch)
