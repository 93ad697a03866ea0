"""An end to what a file of the user's computes."""

import signal
import sys

from hf_recipes.core.bounds import bounded


def test_a_signal_while_a_module_is_read_ends_nothing(monkeypatch):
    """A look at the memory imports nothing: the next one would find a module that is only half there."""
    before = signal.getsignal(signal.SIGALRM)
    with bounded("it"):
        look = signal.getsignal(signal.SIGALRM)
        monkeypatch.setitem(sys.modules, "psutil", None)
        signal.raise_signal(signal.SIGALRM)
    assert look is not before and signal.getsignal(signal.SIGALRM) is before
