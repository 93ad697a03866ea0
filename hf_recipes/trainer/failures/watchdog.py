"""Ends a process that waits for another one that never comes."""

import contextlib
import faulthandler
import os
import sys
import threading
import time


class Watchdog:
    """Ends this process when `heartbeat` was not called for `seconds`.

    Ranks that wait in different collectives wait for ever (gloo's own timeout does not fire then) and would hold the
    machines. Used as a context manager, and only where several processes train.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last, self._done = seconds, time.monotonic(), threading.Event()

    def heartbeat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.heartbeat()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                rank = os.environ.get("RANK", "0")
                print(
                    f"error (rank {rank}): no batch ended for {self._seconds:g} s (--ddp_timeout): another process "
                    "died or waits for something else; where this one stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                with contextlib.suppress(OSError):
                    sys.stderr.flush()
                os._exit(1)
