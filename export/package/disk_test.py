"""Outputs that cannot become a package are refused before any work, and promotion never loses the old package."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from export.package.disk import check_output, explained, partial_of
from runtime_py.errors import MachineError, UsageError


def package(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    return folder


def test_refuses_a_file_a_package_and_a_strange_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        check_output(tmp_path / "file", force=True, resume=False)
    package(tmp_path / "out", '{"schema": 2, "edgeproof": "1", "files": []}')
    with pytest.raises(UsageError, match="exists already"):
        check_output(tmp_path / "out", force=False, resume=False)
    check_output(tmp_path / "out", force=True, resume=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="is no package"):
        check_output(tmp_path / "home", force=True, resume=False)


def test_an_unfinished_export_is_refused_by_name(tmp_path: Path) -> None:
    partial_of(tmp_path / "out").mkdir()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "out", force=False, resume=False)
    assert "--resume" in caught.value.next_step
    assert "--force" in caught.value.next_step
    check_output(tmp_path / "out", force=False, resume=True)
    check_output(tmp_path / "out", force=True, resume=False)


def test_a_web_apps_manifest_is_no_package(tmp_path: Path) -> None:
    package(tmp_path / "site", '{"name": "my site", "icons": []}')
    with pytest.raises(UsageError, match="is no package"):
        check_output(tmp_path / "site", force=True, resume=False)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no folder"):
        check_output(tmp_path / "file/deep/out", force=False, resume=False)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written"), (errno.EIO, "failed")]
)
def test_system_errors_are_explained(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(MachineError, match=words), explained(tmp_path / "out"):
        raise OSError(number, "as the system says it", str(tmp_path / "x.bin"))


@pytest.mark.parametrize("name", ["", ".", "/", "..", "sub/.."])
def test_a_folder_without_a_name_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name of its own") as caught:
        check_output(Path(name), force=True, resume=False)
    assert "-o " in caught.value.next_step


def test_names_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for length in (longest - 4, longest, longest + 1, 5000):
        with pytest.raises(UsageError, match="longer than a path may be"), explained(tmp_path / "x"):
            check_output(tmp_path / ("x" * length), force=False, resume=False)
    with pytest.raises(UsageError, match="no UTF-8"):
        check_output(Path(os.fsdecode(bytes(tmp_path) + b"/\xff")), force=False, resume=False)
