"""An end to what a file of the user's computes: a chat template that loops, a regular expression that backtracks."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from hf_recipes.core.errors import UserError

SECONDS, BYTES = 10, 1 << 30
TEMPLATE = "the chat template of this tokenizer"
_TICK = 0.05  # seconds between two looks at the memory


@contextmanager
def bounded(what: str) -> Iterator[Callable[[], None]]:
    """End what runs within after `SECONDS`, or once the process has grown by `BYTES`; within another, that one does.

    Signals interrupt it, which only the main thread gets, and Windows has none of: elsewhere nothing is bounded.

    Yields:
        what begins the time and the memory anew, for one of many.

    Raises:
        UserError: one of the two was reached; it begins with `what`.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not is_main or signal.getitimer(signal.ITIMER_REAL)[1]:
        yield lambda: None
        return
    import psutil  # not within `look`, whose signals come again while a slow disk reads the module

    process, begun, before, limited = psutil.Process(), time.monotonic(), None, 0.0
    limits = process.rlimit(psutil.RLIMIT_DATA) if psutil.LINUX else (0, 0)

    def begin() -> None:
        nonlocal begun, before, limited
        begun, before = time.monotonic(), None
        if limits[0] == -1 and begun - limited > _TICK:  # it takes as long as a short rendering
            # No signal comes within one operation, and 'x' * 10**10 is one.
            with suppress(OSError, ValueError):  # a lower limit of the administrator's
                process.rlimit(psutil.RLIMIT_DATA, (process.memory_info().data + 2 * BYTES, limits[1]))
            limited = begun

    def look(*_) -> None:
        nonlocal before
        memory = process.memory_info().rss
        before = memory if before is None else before
        if time.monotonic() - begun > SECONDS:
            raise UserError(f"{what} does not end (stopped after {SECONDS:g} seconds)")
        if memory - before > BYTES:
            raise MemoryError

    begin()
    handler = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield begin
    except MemoryError:
        raise UserError(f"{what} fills the memory (stopped after {BYTES / 1e9:.1f} GB)") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if limits[0] == -1:
            process.rlimit(psutil.RLIMIT_DATA, limits)
