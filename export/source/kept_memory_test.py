"""Freed pieces are there for the next ones, so the system clears no page for them."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from export.source.kept_memory import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told to keep what is free")
def test_a_piece_of_memory_is_used_again() -> None:
    if not keep_freed_memory():
        pytest.skip("another C library")
    torch.ones(4 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 << 20, dtype=torch.uint8)
    # 20 pieces of 1024 pages each
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4 << 10
