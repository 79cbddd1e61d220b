"""Memory that training takes anew in every step is kept, and not given back to the system in between.

A step allocates and frees tensors of megabytes. glibc maps each from the system and unmaps it again, and the pages'
zeroing takes a quarter of a step's time; with higher thresholds (mallopt(3)) it hands out the same pages again.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 1 << 30
"""Bytes; blocks above it go back at once."""


def keep_freed() -> bool:
    """Ask the C library, for the whole process, to keep what is freed; False where it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    # the threshold of trimming first: setting either ends glibc's own adapting of both
    return all(bool(library.mallopt(name, LARGE)) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
