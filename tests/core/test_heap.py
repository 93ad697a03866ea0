"""What a process frees goes back to the system, whatever lies beside it."""

import os
import subprocess
import sys

from conftest import ROOT
from hf_recipes.core.heap import map_large_blocks

FREES = """
import sys, torch
from hf_recipes.core.heap import map_large_blocks
from hf_recipes.dry_run.peak_memory import _resident
if sys.argv[1] == "mapped":
    map_large_blocks()
for size in range(1, 30):
    del (a := [torch.ones(size * 2**18)])[0]  # as blocks are freed, glibc takes the next of their size from the heap
large, small = [], []
for _ in range(20):
    large.append(torch.ones(6 * 2**18))
    small.append(torch.ones(2**12))
held = _resident("VmRSS")
large.clear()
print(held - _resident("VmRSS"))
"""


def freed(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FREES, *arguments]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_large_blocks_go_back():
    assert freed("mapped") > 110 * 2**20  # of 20 times 6 MiB
    assert freed("as it is") < 20 * 2**20


def test_a_limit_in_the_environment_stays(monkeypatch):
    def never(*_):
        raise AssertionError("mallopt was looked up")

    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setattr("ctypes.CDLL", never)
    map_large_blocks()
