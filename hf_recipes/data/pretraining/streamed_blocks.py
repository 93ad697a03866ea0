"""Documents tokenized as they are read, in an order that no number of processes changes.

All processes read all documents; each tokenizes its share of them, in chunks, and gets the others' tokens from those
that made them. Reading takes a thirtieth of the time of tokenizing. So a stream has one order, and each block of a run
is the same block at any number of processes and workers, and after any number of restarts.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import KEPT
from hf_recipes.data.pretraining.corpora import Reader
from hf_recipes.data.pretraining.document_stream import Cursor, file_order, read_chunks
from hf_recipes.data.pretraining.packing import Block, Blocking, fill
from hf_recipes.data.pretraining.parallel_tokenizer import Tokenization

WINDOW_TOKENS = 1 << 17  # blocks are shuffled among so many tokens; resuming tokenizes them again, in about 0.2 s


BEGINNING = {"used": 0, "window": 0, "given": 0, "left_out": 0}  # of a stream's state


@dataclass
class _Head:
    """A tokenized chunk of which the first `used` kept tokens were given out."""

    start: Cursor
    after: Cursor
    locations: list[str]
    ids: list[np.ndarray]
    ends: np.ndarray  # where each document ends among the chunk's kept tokens
    ends_epoch: bool
    used: int = 0

    @property
    def left(self) -> int:
        return (int(self.ends[-1]) if len(self.ends) else 0) - self.used


class StreamedBlocks:
    """The blocks of a source one after the other, without end, from any place that `state` told.

    Args:
        seed: draws the order of the files in each epoch and of the blocks in each window; None leaves both as they are.
        tell: called with the place and the fate of each row of the first epoch.
    """

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        blocking: Blocking,
        tokenization: Tokenization,
        seed: int | None = None,
        tell: Callable[[str, str], None] = lambda location, status: None,
    ):
        self.name, self.readers, self.blocking = name, list(readers), blocking
        self.tokenization, self.seed, self.tell = tokenization, seed, tell
        self._sizes = np.array([os.path.getsize(r.source.path) if r.source.split is None else 1 for r in readers])
        self._size = max(1, WINDOW_TOKENS // blocking.size) if seed is not None else 1
        self.begin(None)

    def begin(self, state: dict[str, Any] | None) -> None:
        """Go on at `state`, or at the beginning."""
        state = state or {**BEGINNING, "cursor": asdict(Cursor()), "told": asdict(Cursor())}
        self._chunks = read_chunks(self.readers, Cursor(**state["cursor"]), self.seed)
        self._pending: deque = deque()
        self._turn = self._taken = 0
        self._heads: deque[_Head] = deque()
        self._told = Cursor(**state["told"])
        self._head_used, self._windows = state["used"], state["window"]
        self._window: list[Block] = []
        self._window_state = {name: state[name] for name in ("cursor", "used", "window", "left_out")}
        self._left_out = state["left_out"]
        self._given, self._epochs_done = 0, 0
        self._span = (0.0, 0.0)
        self._skip = state["given"]  # of the blocks of the first window

    def state(self) -> dict[str, Any]:
        """Where the next block comes from, as plain values."""
        return {**self._window_state, "given": self._given + self._skip, "told": asdict(self._told)}

    @property
    def epochs(self) -> float:
        """How often the source was gone through, by the sizes of its files."""
        begin, end = self._span
        return begin + (end - begin) * self._given / max(1, len(self._window))

    @property
    def left_out(self) -> int:
        """Tokens of documents that were shortened and of last blocks that were dropped, up to the last block given."""
        before = self._window_state["left_out"]
        return before + round((self._left_out - before) * self._given / max(1, len(self._window)))

    def _progress(self, head: _Head) -> float:
        begin, end = (self._epochs_at(cursor) for cursor in (head.start, head.after))
        return begin + (end - begin) * head.used / max(1, head.used + head.left)

    def _epochs_at(self, cursor: Cursor) -> float:
        sizes = self._sizes[file_order(len(self.readers), cursor.epoch, self.seed)]
        done = sizes[: cursor.file].sum()
        if cursor.file < len(sizes):
            done += min(cursor.offset, sizes[cursor.file])
        return cursor.epoch + float(done / max(1, sizes.sum()))

    def next(self) -> Block:
        """The next block; all processes must take all of them."""
        if self._given >= len(self._window):
            self._open_window()
            self._given, self._skip = self._skip, 0
        if self._given >= len(self._window):  # a state at the end of its window
            self._open_window()
        self._given += 1
        return self._window[self._given - 1]

    def _open_window(self) -> None:
        """Make the next blocks that are shuffled among each other, never beyond the end of an epoch."""
        head = self._head()
        location = {"cursor": asdict(head.start), "used": head.used, "window": self._windows}
        self._window_state = {**location, "left_out": self._left_out}
        begin = self._progress(head)
        blocks: list[Block] = []
        epochs = 0
        while len(blocks) < self._size and not (epochs and blocks):
            block, ends_epoch = self._cut()
            if block is not None:
                blocks.append(block)
            epochs += ends_epoch
            if epochs > 1 and not blocks:
                raise UserError(
                    f"{self.name}: the source is shorter than one block of {self.blocking.size} tokens; "
                    "lower --block_size, or leave --drop_last out"
                )
        if self.seed is not None:
            order = np.random.default_rng([self.seed, 4, self._windows]).permutation(len(blocks))
            blocks = [blocks[index] for index in order]
        self._window, self._given, self._windows = blocks, 0, self._windows + 1
        self._span = begin, self._progress(self._heads[0]) if self._heads else float(self._epochs_done)

    def _head(self) -> _Head:
        """The chunk that the next token is in."""
        while True:
            if not self._heads:
                self._heads.append(self._take())
                self._heads[0].used, self._head_used = self._head_used, 0
            head = self._heads[0]
            if head.left or head.ends_epoch:
                return head
            self._heads.popleft()

    def _cut(self) -> tuple[Block | None, bool]:
        """The next block of the epoch, None where nothing is left of it, and whether the epoch ends with it."""
        parts, wanted, ends_epoch, location = [], self.blocking.size, False, ""
        while wanted and not ends_epoch:
            head = self._head()
            while wanted and head.left:
                index = int(np.searchsorted(head.ends, head.used, "right"))
                begin = int(head.ends[index - 1]) if index else 0
                stop = min(int(head.ends[index]), head.used + wanted)
                number, ids = head.start.documents + index, head.ids[index]
                at = self.blocking.skipped(len(ids), head.start.epoch, number) + head.used - begin
                parts.append((ids[at : at + stop - head.used], head.used - begin))
                location = location or f"from {head.locations[index]} on"
                wanted -= stop - head.used
                head.used = stop
                if stop == head.ends[index]:
                    self._left_out += len(ids) - (stop - begin)
            if not head.left and head.ends_epoch:
                self._heads.popleft()
                ends_epoch, self._epochs_done = True, head.start.epoch + 1
        block = fill(parts, self.blocking, location)
        if wanted and self.blocking.drop_last:
            self._left_out += len(block.ids)
            return None, ends_epoch
        if not len(block.ids):
            return None, ends_epoch
        return block, ends_epoch

    def _take(self) -> _Head:
        """Tokens of the next chunk; the following ones are begun before they are needed."""
        ahead = self.tokenization.world * (1 + 2 * self.tokenization.workers)
        while len(self._pending) < ahead:
            chunk = next(self._chunks)
            self._pending.append((chunk, self.tokenization.submit(chunk.texts, self._turn)))
            self._turn += 1
        chunk, pending = self._pending.popleft()
        ids = self.tokenization.result(pending, self._taken)
        self._taken += 1
        if chunk.start.epoch == 0 and _order(chunk.start) >= _order(self._told):
            for location, status in chunk.statuses:
                self.tell(location, status)
            self._told = chunk.after
        lengths = np.array([len(row) for row in ids], np.int64)
        if self.blocking.shortens:
            lengths = np.minimum(lengths, self.blocking.size)
        locations = [location for location, status in chunk.statuses if status == KEPT]
        return _Head(chunk.start, chunk.after, locations, ids, np.cumsum(lengths), chunk.ends_epoch)


def _order(cursor: Cursor) -> tuple[int, ...]:
    return cursor.epoch, cursor.file, cursor.lines
