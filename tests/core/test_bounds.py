"""An end to what a file of the user's computes."""

import resource
import signal
import sys

import jinja2
import pytest

from hf_recipes.core.bounds import bounded
from hf_recipes.core.errors import UserError


def test_a_signal_while_a_module_is_read_ends_nothing(monkeypatch):
    """A look at the memory imports nothing: the next one would find a module that is only half there."""
    before = signal.getsignal(signal.SIGALRM)
    with bounded("it"):
        look = signal.getsignal(signal.SIGALRM)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "psutil", None)
            signal.raise_signal(signal.SIGALRM)
    assert look is not before and signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize("template", ["'x' * 10**10", "'x'|center(10**10)", "('x' * 10**6)|replace('x', 'y' * 10**5)"])
def test_one_operation_that_fills_the_memory(template):
    """No signal comes before it ends."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(UserError, match=r"it fills the memory \(stopped after 1\.1 GB\)"), bounded("it"):
        jinja2.Template(f"{{{{ {template} }}}}").render()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
