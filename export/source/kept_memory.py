"""Memory of freed pieces kept for the next ones.

By itself the C library gives what is larger than some hundred kilobytes back to the system as soon as it is free, and the
system clears it page by page when it is asked for again. An export asks for pieces of some MiB tens of thousands of times:
that was a third of the time it spent in the system.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""

PIECE, FREE = 32 << 20, 64 << 20
"""Bytes up to which one piece is kept, which is the most that glibc takes, and of all that is free in one of its arenas."""


@functools.cache
def keep_freed_memory() -> bool:
    """Have the process keep what it frees; returns whether it does (with glibc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return bool(library.mallopt(MMAP_THRESHOLD, PIECE) and library.mallopt(TRIM_THRESHOLD, FREE))
    return False
