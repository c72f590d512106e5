"""What is read into large pages, and when a file is mapped instead."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends import large_pages
from runtime_py.backends.large_pages import PART, file_bytes, large_page

LARGE = pytest.mark.skipif(not large_page(), reason="the system gives no large pages")


def written(folder: Path, size: int) -> tuple[Path, np.ndarray]:
    content = np.arange(-(-size // 8), dtype=np.int64).view(np.uint8)[:size]
    path = folder / "weights"
    content.tofile(path)
    return path, content


def huge_bytes() -> int:
    """Memory of this process that lies in large pages."""
    rows = re.findall(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps").read_text(encoding="ascii"))
    return sum(map(int, rows)) * 1024


@LARGE
def test_a_file_is_read_into_large_pages_by_several_threads(tmp_path: Path) -> None:
    path, content = written(tmp_path, 2 * PART + 12345)
    before = huge_bytes()
    read = file_bytes(path, threads=2)
    assert not isinstance(read, np.memmap) and np.array_equal(read, content)
    assert read.ctypes.data % large_page() == 0
    assert huge_bytes() - before >= PART, "most of it lies in large pages"


def test_it_is_mapped_where_memory_is_short_or_has_no_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = written(tmp_path, 5 << 20)
    monkeypatch.setattr(large_pages, "available_bytes", lambda: 9 << 20)
    assert isinstance(file_bytes(path), np.memmap) and np.array_equal(file_bytes(path), content)
    monkeypatch.undo()
    (tmp_path / "enabled").write_text("always madvise [never]\n", encoding="ascii")
    monkeypatch.setattr(large_pages, "SETTINGS", tmp_path)
    assert large_page() == 0 and isinstance(file_bytes(path), np.memmap)
    monkeypatch.setattr(large_pages, "SETTINGS", tmp_path / "not there")
    assert large_page() == 0 and isinstance(file_bytes(path), np.memmap)


def test_a_file_smaller_than_a_large_page_is_mapped(tmp_path: Path) -> None:
    path, content = written(tmp_path, 1000)
    assert isinstance(file_bytes(path), np.memmap) and np.array_equal(file_bytes(path), content)


@LARGE
def test_a_file_that_shrinks_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = written(tmp_path, 5 << 20)
    monkeypatch.setattr(large_pages.os, "preadv", lambda *_: 0)
    with pytest.raises(OSError, match="ends at 0 bytes"):
        file_bytes(path)
