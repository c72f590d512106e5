from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime_py import memory
from runtime_py.errors import DoesNotFitError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\nSwapFree: 1000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_the_smaller_of_machine_and_container(machine: Path) -> None:
    assert memory.available_bytes() == 5000 * 1024
    (machine / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 5000 * 1024
    (machine / "memory.max").write_text("3000000\n")
    (machine / "memory.current").write_text("1000000\n")
    assert memory.available_bytes() == 2_000_000


def test_an_older_containers_limit_counts_too(machine: Path) -> None:
    """cgroup v1, whose files lie a folder deeper; its file cache is free as v2's is."""
    (machine / "memory").mkdir()
    (machine / "memory" / "memory.limit_in_bytes").write_text("3000000\n")
    (machine / "memory" / "memory.usage_in_bytes").write_text("1000000\n")
    assert memory.container_bytes() == memory.available_bytes() == 2_000_000
    (machine / "memory" / "memory.stat").write_text("cache 900\ninactive_file 400000\n")
    assert memory.container_bytes() == 2_400_000


def test_what_does_not_fit_is_refused(machine: Path) -> None:
    memory.require_bytes(5000 * 1024, "the cache", "a smaller one")
    with pytest.raises(DoesNotFitError, match=r"the cache needs 4\.8 GiB"):
        memory.require_bytes(5_200_000_000, "the cache", "a smaller one")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_800_000_000, "1.7 GiB"), (5 << 40, "5.0 TiB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert memory.human_bytes(count) == text


def test_sizes_held_against_others_have_two_places_from_a_gib_on() -> None:
    assert memory.gibibytes(3_480_000_000) == "3.24 GiB"
    assert memory.gibibytes(5 << 20) == "5.0 MiB"


def test_this_machine_says_something() -> None:
    available = memory.available_bytes()
    assert available is None or available > 1 << 20


def test_peak_memory_is_that_of_a_process() -> None:
    assert 5 << 20 < memory.peak_resident_bytes() < 1 << 45


def test_a_program_does_not_begin_with_the_peak_of_the_one_that_starts_it() -> None:
    asked = [sys.executable, "-c", "from runtime_py.memory import peak_resident_bytes; print(peak_resident_bytes())"]
    held = bytearray(b"\1") * (200 << 20)
    assert int(subprocess.run(asked, capture_output=True, check=True).stdout) < len(held) // 2
    assert memory.peak_resident_bytes() > len(held)


def test_a_system_without_proc_says_it_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert 5 << 20 < memory.peak_resident_bytes() < 1 << 45
