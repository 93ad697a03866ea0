"""A pool of processes that tokenize, shared by the ranks of a run."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from hf_recipes.core.distributed import STOPS, forking
from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.document_encoder import DocumentEncoder

_encoder: DocumentEncoder | None = None


def _start_worker(encoder: DocumentEncoder) -> None:
    global _encoder
    _encoder, parent = encoder, os.getppid()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in STOPS:  # sent to the whole group; the main process handles them
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:  # the pipes of the pool stay open when the run is killed
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
        workers_flag: that sets `workers`, for the message of one that was killed.
    """

    def __init__(
        self,
        encoder: DocumentEncoder,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        exchange: Callable[[Any, int], Any] | None = None,
        workers_flag: str = "--preprocessing_num_workers",
    ):
        self.encoder, self.workers = encoder, workers
        self.rank, self.world, self._exchange = rank, world, exchange
        self.workers_flag = workers_flag
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, texts: list[str], turn: int) -> "Future | list[str] | None":
        """Begin to tokenize; pass what is returned to `result`. This process has one of each `world` turns."""
        if turn % self.world != self.rank:
            return None
        if not self.workers:
            return texts
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, forking(self.workers_flag), _start_worker, (self.encoder,))
        return self._pool.submit(_encode, texts)

    def result(self, pending: "Future | list[str] | None", turn: int) -> list[np.ndarray]:
        """The ids of the texts submitted in a turn; all processes take all turns in their order."""
        ids: Any = pending
        if isinstance(pending, Future):
            try:
                ids = pending.result()
            except BrokenProcessPool:
                ids = UserError(f"a process that tokenizes was killed (out of memory?); lower {self.workers_flag}")
        elif pending is not None:
            ids = self.encoder.encode(pending)
        if self.world > 1:
            ids = self._exchange(ids, turn % self.world)
        if isinstance(ids, UserError):  # in all processes
            raise ids
        return ids

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
