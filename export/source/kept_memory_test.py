"""Freed pieces are there for the next ones, so the system clears no page for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.source.kept_memory import keep_freed_memory

PIECES, TIMES = 8, 10
PROGRAM = f"""\
import resource, sys
from export.source.kept_memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def filled():
    return [bytes([1]) * (4 << 20) for _ in range({PIECES})]
filled()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    filled()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Pages that the system clears for pieces of 1,024 each, in a process that has freed nothing else."""


def cleared(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    root = Path(__file__).parents[2]
    return int(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone is told to keep what is free")
def test_a_piece_of_memory_is_used_again() -> None:
    if not keep_freed_memory():
        pytest.skip("another C library")
    assert cleared("kept") < 1024 < PIECES * TIMES * 256 < cleared("given back")
