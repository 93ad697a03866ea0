"""glibc's malloc: large blocks as mappings, for less memory on a CPU."""

import ctypes
import os
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
MIN_MAPPED_BYTES = 4 * 2**20  # bytes: mapping smaller blocks slowed a training step by a fifth, these not measurably


def map_large_blocks() -> None:
    """Give each block of `MAPPED` bytes or more its own mapping, which is returned to the system when it is freed.

    By default glibc raises this limit to 32 MiB as blocks are freed. Tensors of similar sizes then leave holes in the
    heap into which the next one does not fit: up to 300 MB in an evaluation whose tensors take 60 MB. A limit in the
    environment and other mallocs are respected.
    """
    if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, MIN_MAPPED_BYTES)


def heap_bytes(size: int) -> int:
    """Of a block of `size` bytes, those that malloc takes from its heap: all, or none of a large block."""
    return size if size < MIN_MAPPED_BYTES else 0
