"""Weights in the system's large pages, where it gives them.

A step of a decoder reads every weight once. In pages of 4 KiB a processor looks up where each of them lies; in pages of
2 MiB 512 times less often (Linux, Documentation/admin-guide/mm/transhuge.rst). Files are not mapped in such pages, so
their content is read into memory that is.
"""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from runtime_py.memory import available_bytes

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
PART = 1 << 26
"""Bytes that a thread reads at a time: whole large pages, so that no two threads fill one."""

ROOM = 2
"""How many times the file has to fit into free memory: it shall not drive out what others have there."""


def file_bytes(path: Path, threads: int = 0) -> np.ndarray:
    """A file's content, uint8: read into large pages, or mapped where there are none or too little memory.

    Args:
        threads: that read; 0 for one a processor.

    Raises:
        OSError: the file cannot be read, or is shorter than it was a moment ago.
    """
    size = path.stat().st_size
    page = large_page()
    free = available_bytes()
    if not page or size < page or (free is not None and free < ROOM * size):
        return np.memmap(path, np.uint8, "c")
    content = large_memory(size)
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        parts = range(0, size, PART)
        for _ in pool.map(lambda start: fill(file.fileno(), content[start : start + PART], start), parts):
            pass
    return content


def large_memory(size: int) -> np.ndarray:
    """So many bytes of zeros, uint8, in large pages where programs are given any."""
    page = large_page()
    memory = mmap.mmap(-1, size + (page or mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if page:
        memory.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(memory, np.uint8)
    first = -content.__array_interface__["data"][0] % (page or mmap.PAGESIZE)
    return content[first : first + size]


def large_page() -> int:
    """Bytes of a large page; 0 where programs are not given any."""
    try:
        given = "[never]" not in (SETTINGS / "enabled").read_text(encoding="ascii")
        return int((SETTINGS / "hpage_pmd_size").read_text(encoding="ascii")) if given else 0
    except (OSError, ValueError):
        return 0


def fill(file: int, part: np.ndarray, start: int) -> None:
    """Read a whole uint8 array from a file's byte ``start`` on.

    Raises:
        OSError: the file ends before.
    """
    done = 0
    while done < len(part):
        count = os.preadv(file, [part[done:].data], start + done)
        if not count:
            raise OSError(f"it ends at {start + done} bytes")
        done += count
