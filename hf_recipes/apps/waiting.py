"""Servers that run until they are told to stop."""

import signal
import threading
from collections.abc import Callable

from hf_recipes.core.errors import say


def until_stopped(begin: Callable[[], str]) -> None:
    """Print the line that `begin` returns once it serves, and wait for Ctrl-C or SIGTERM."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        say(begin())
        ended.wait()
    except KeyboardInterrupt:
        say("")
    finally:
        signal.signal(signal.SIGTERM, before)
