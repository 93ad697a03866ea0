"""A pool of processes that tokenize, shared by the ranks of a run."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder

if TYPE_CHECKING:
    pass


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
