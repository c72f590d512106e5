"""Archives of equal objects are equal to the byte; what links is the first compiler that is there, or said to be missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from export.compilation.host import host_place
from export.compilation.objects import link_shared, linker, write_tar
from runtime_py.errors import MachineError


def test_an_archive_depends_on_names_and_content_alone(tmp_path: Path) -> None:
    made = []
    for number, mode in enumerate((0o600, 0o755)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = [folder / "lib0.o", folder / "devc.o"]
        for file in files:
            file.write_bytes(file.name.encode() * 3)
            file.chmod(mode)
            os.utime(file, (number, number))
        write_tar(folder / f"{number}.tar", files)
        made.append(folder / f"{number}.tar")
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as archive:
        members = [(member.name, member.mode, member.mtime, member.uid) for member in archive]
        assert members == [("lib0.o", 0o644, 0, 0), ("devc.o", 0o644, 0, 0)]
        content = archive.extractfile("devc.o")
        assert content is not None and content.read() == b"devc.o" * 3


def test_the_first_compiler_that_is_there_links(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = [sys.executable, "-m", "ziglang", "cc", "-target", f"{host_place()}-linux-gnu"]
    there = ["cc", "gcc", "clang", "ziglang"]
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    for command in (["cc"], ["gcc"], ["clang"], wheel):
        assert linker() == command
        del there[0]
    with pytest.raises(MachineError, match="no linker on this machine"):
        linker()


def test_a_linker_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"linking out.so failed: .*none.o"):
        link_shared(tmp_path / "out.so", [tmp_path / "none.o"])
