"""What arrays that take memory page by page hold, and how much of it is there."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.small_pages import stacked_zeros, zeros


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    told = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert told is not None
    return int(told[1]) * 1024


def test_they_are_zeros_that_can_be_written() -> None:
    made = zeros((2, 3, 5), np.dtype(np.float16))
    assert made.shape == (2, 3, 5) and made.dtype == np.float16 and made.flags.c_contiguous and not made.any()
    made[1, 2] = 1
    assert made.sum() == 5
    assert zeros((0, 3), np.dtype(np.float32)).shape == (0, 3)


def test_each_of_several_begins_at_a_page() -> None:
    made = stacked_zeros(3, (2, 5, 7), np.dtype(np.float16))
    assert made.shape == (3, 2, 5, 7) and made.dtype == np.float16 and not made.any()
    assert all(each.flags.c_contiguous and each.ctypes.data % mmap.PAGESIZE == 0 for each in made)
    made[:, 1] = 1
    assert [each.sum() for each in made] == [35, 35, 35]
    assert stacked_zeros(2, (0, 3), np.dtype(np.float32)).shape == (2, 0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_positions_that_no_prompt_reached_take_no_memory() -> None:
    heads, positions, width = 64, 8192, 128
    before = anonymous_bytes()
    cache = zeros((1, heads, positions, width), np.dtype(np.float16))
    cache[:, :, :32] = 1
    taken = anonymous_bytes() - before
    assert cache.nbytes == 1 << 27 and taken < 1 << 24, f"{taken} bytes of {cache.nbytes} are held"
    del cache
    assert anonymous_bytes() - before < 1 << 22
