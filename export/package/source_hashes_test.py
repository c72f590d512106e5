"""A checkpoint that changes under an export, its size and time kept, is noticed; so is one that changes between two runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from export.package import source_hashes
from export.package.journal import Journal, sha256_of
from export.package.source_hashes import SourceHashes, stamp
from runtime_py.errors import CheckpointError


def journal_in(folder: Path) -> Journal:
    folder.mkdir(exist_ok=True)
    return Journal(folder, {})


def swap(path: Path) -> None:
    """Other content of the same size and time."""
    before = path.stat()
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("config.json", "model.safetensors")}
    for name, path in paths.items():
        path.write_bytes(name.encode() * 100)
    return paths


def test_hashes_are_taken_and_confirmed(tmp_path: Path, files: dict[str, Path]) -> None:
    journal = journal_in(tmp_path / "p")
    with SourceHashes(files, journal) as hashes:
        records = hashes.records()
        assert hashes.confirmed() == records
    assert {record.path: record.sha256 for record in records} == {name: sha256_of(path) for name, path in files.items()}


def test_a_change_while_the_export_runs(tmp_path: Path, files: dict[str, Path]) -> None:
    before = stamp(files["model.safetensors"])
    with SourceHashes(files, journal_in(tmp_path / "p")) as hashes:
        hashes.records()
        swap(files["model.safetensors"])
        assert stamp(files["model.safetensors"]) == before
        with pytest.raises(CheckpointError, match=r"model\.safetensors changed while"):
            hashes.confirmed()


def test_a_change_is_seen_by_its_time_alone(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read twice, and what no clock shows to be young is told by the time of its last change."""
    read: list[Path] = []

    def noted(path: Path, *told: object) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(source_hashes, "sha256_of", noted)
    monkeypatch.setattr(source_hashes, "YOUNG", -1)
    with SourceHashes(files, journal_in(tmp_path / "p")) as hashes:
        assert hashes.confirmed() == hashes.records()
        assert sorted(read) == sorted(files.values())
        time.sleep(0.02)  # more than a step of the file system's clock
        swap(files["model.safetensors"])
        with pytest.raises(CheckpointError, match=r"model\.safetensors changed while"):
            hashes.confirmed()


def test_a_change_between_two_runs(tmp_path: Path, files: dict[str, Path]) -> None:
    first = journal_in(tmp_path / "p")
    first.begin()
    with SourceHashes(files, first) as hashes:
        hashes.records()
    swap(files["config.json"])
    again = journal_in(tmp_path / "p")
    again.resume()
    with SourceHashes(files, again) as hashes, pytest.raises(CheckpointError, match=r"config\.json changed"):
        hashes.records()
