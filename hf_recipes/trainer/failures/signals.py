"""A signal, or Ctrl-C, in the middle of a run: the step is finished and a checkpoint written."""

import os
import signal
import threading

from hf_recipes.core.distributed import STOPS
from hf_recipes.core.errors import say


class Stopped(Exception):
    """Raised between two batches of an evaluation after a signal."""


class StopSignal:
    """Turns SIGTERM (Slurm, a cloud's reclaim), SIGHUP and the first Ctrl-C into a request; a second Ctrl-C ends at
    once. A signal that is ignored already (SIGHUP, by nohup) stays so.

    Use as a context manager; `name` is the signal's name once it came.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._former: dict[int, object] = {}

    def _record(self, number: int, frame: object) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        try:
            say(f"{self.name}: saving a checkpoint at the end of this step")
        except OSError:  # the terminal is gone, and no later output may end the run
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def leave_signals_to_the_run(*worker: object) -> None:
    """In a process that loads data, ignore signals to the whole group (Slurm's, Ctrl-C): the run handles them."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
