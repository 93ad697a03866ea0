import errno
import os
import signal
import sys

import pytest

from hf_recipes.trainer.failures.signals import StopSignal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_a_request_also_where_the_terminal_is_gone(monkeypatch, name):
    class Gone:
        def write(self, text):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    replaced = []
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(os, "dup2", lambda new, old: replaced.append(old))
    former = signal.signal(getattr(signal, name), signal.SIG_DFL)  # under nohup a hangup is ignored
    with StopSignal() as stop:
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.name == name
    signal.signal(getattr(signal, name), former)
    assert replaced == [1, 2]


def test_nohup_stays():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.name is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
