"""Arrays of zeros in small pages: they take memory as they are written.

NumPy asks Linux for huge pages for what is large (numpy/numpy, doc/source/reference/global_state.rst). A key/value cache
lies head by head: of every head the positions so far are written, and what is reserved for later ones stands between them.
Of pages of 2 MB the first prompt touches each, so that the whole cache is cleared and held.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np


def zeros(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros of this shape, in pages of the system's ordinary size where it lets programs choose; given back when freed."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)


def stacked_zeros(count: int, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """``count`` such arrays of one shape as one (count, *shape); each begins at a page boundary."""
    size = math.prod(shape) * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    return zeros((count, pages), np.dtype(np.uint8))[:, :size].view(dtype).reshape(count, *shape)
