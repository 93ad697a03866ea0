"""How glibc's malloc keeps large blocks, on which the memory of a run on a CPU depends."""

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
MAPPED = 4 * 2**20  # bytes: smaller mappings slowed a training step by a fifth, these not measurably


def map_large_blocks() -> None:
    """Give each block of `MAPPED` bytes or more a mapping of its own, which goes back to the system when it is freed.

    glibc by itself raises this limit to 32 MiB as blocks are freed, and tensors of nearly one size then leave holes in
    the heap that the next one does not fit into: up to 300 MB in an evaluation whose tensors take 60 MB, by chance. A
    limit in the environment stays; another malloc is not touched.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, MAPPED)
