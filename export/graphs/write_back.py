"""A file written to the disk while it is made, so that the wait at its end is short."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

INITIATE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): start, and wait for nothing."""


def begin_write_back(file: int) -> bool:
    """Have the system write what it holds of an open file; returns whether it began (Linux). It is no fsync."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        whole = ctypes.c_int64(0)  # from the beginning to the end
        return not ctypes.CDLL(None).sync_file_range(file, whole, whole, INITIATE)
    return False
