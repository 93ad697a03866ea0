"""Tokenizing documents in several processes, on one machine or many, and into shards."""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.core.files import move_folder, temporary_folder
from hf_recipes.data.pretraining.token_shards import SHARDS, DocumentEncoder, Shard, ShardWriter, write_manifest

if TYPE_CHECKING:
    from hf_recipes.data.pretraining.streamed_blocks import Chunk

SHARD_TOKENS = 1 << 27

_encoder: DocumentEncoder | None = None


def _start_worker(encoder: DocumentEncoder) -> None:
    global _encoder
    _encoder, parent = encoder, os.getppid()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to the whole group, they are the run's to answer
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:  # the pool's pipes stay open when the run is killed
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode(texts: list[str]) -> list[np.ndarray]:
    return _encoder.encode(texts)


class Tokenization:
    """Turns texts into ids in `workers` processes (none: in this one), as one of `world` that share the work.

    Args:
        exchange: ``exchange(value, owner)`` gives every process the `value` of process `owner`, where they share.
    """

    def __init__(
        self,
        encoder: DocumentEncoder,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        exchange: Callable[[Any, int], Any] | None = None,
    ):
        self.encoder, self.workers = encoder, workers
        self.rank, self.world, self._exchange = rank, world, exchange
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, texts: list[str], turn: int) -> "Future | list[str] | None":
        """Begin to tokenize; what is returned goes to `result`. Of each `world` turns, one is this process's."""
        if turn % self.world != self.rank:
            return None
        if not self.workers:
            return texts
        if self._pool is None:
            context = get_context("fork")
            self._pool = ProcessPoolExecutor(self.workers, context, _start_worker, (self.encoder,))
        return self._pool.submit(_encode, texts)

    def result(self, pending: "Future | list[str] | None", turn: int) -> list[np.ndarray]:
        """The ids of what was submitted in a turn; all processes take all turns in their order."""
        found: Any = pending
        if isinstance(pending, Future):
            try:
                found = pending.result()
            except BrokenProcessPool:
                found = UserError(
                    "a process that tokenizes was killed (out of memory?); lower --dataloader_num_workers"
                )
        elif pending is not None:
            found = self.encoder.encode(pending)
        if self.world > 1:
            found = self._exchange(found, turn % self.world)
        if isinstance(found, UserError):
            raise found
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def store(
    name: str,
    chunks: "Iterable[Chunk]",
    encoder: DocumentEncoder,
    folder: str,
    workers: int,
    tell: Callable[[str, str], None],
    finish: Callable[[Path], None] = lambda building: None,
) -> None:
    """Tokenize an epoch of `chunks` of a source into shards in `folder`, which is there whole or not at all.

    Args:
        tell: called with the place and the fate of each row.
        finish: called with the folder before it gets its name, to put more into it.
    """
    tokenization = Tokenization(encoder, workers)
    shards: list[Shard] = []
    writer: ShardWriter | None = None
    pending: deque = deque()
    left = iter(chunks)
    done = False
    with contextlib.closing(tokenization), temporary_folder(folder) as building:
        while pending or not done:
            while not done and len(pending) < 1 + 2 * workers:
                chunk = next(left)
                pending.append((chunk, tokenization.submit(chunk.texts, 0)))
                done = chunk.ends_epoch
            chunk, ids = pending.popleft()
            for place, row_fate in chunk.fates:
                tell(place, row_fate)
            writer = writer or ShardWriter(building / f"part-{len(shards) + 1:05d}.npy", encoder.dtype)
            writer.add(tokenization.result(ids, 0), chunk.texts)
            if writer.shard.tokens >= SHARD_TOKENS or (done and not pending):
                shards.append(writer.close())
                writer = None
        write_manifest(building, name, encoder, shards)
        finish(building)
        try:
            move_folder(building, folder)
        except OSError:  # another process, of this machine or of one that shares the cache, was as quick with the same
            if not Path(folder, SHARDS).is_file():
                raise
