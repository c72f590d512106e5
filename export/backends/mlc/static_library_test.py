"""The archive that an app links: what goes in, what is refused, and where it may be written."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runtime_py.package
from export.backends.mlc.static_library import join
from runtime_py.errors import PackageError

pytest.importorskip("tvm")

PHONE = {"kind": "llvm", "mtriple": "aarch64-linux-android"}


def library(path: Path, name: str, place: dict[str, str]) -> Path:
    """A library as packages have them, with one small function."""
    import tvm
    from tvm import relax
    from tvm.target import Target

    from export.backends.mlc.library import system_prefix
    from export.compilation.objects import write_objects

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.add(x, x)))
    module = builder.finalize().with_attr("system_lib_prefix", system_prefix(name))
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        write_objects(relax.build(module, target=Target(place)), path)
    return path


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("libraries")
    made = {name: library(folder / f"{name}.tar", name, PHONE) for name in ("first", "second")}
    return made | {"phone": library(folder / "phone.tar", "phone", {"kind": "llvm", "mtriple": "arm64-apple-ios"})}


@pytest.fixture
def packages(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Package folders by the name of their library; one has none."""

    def read(package: Path) -> Any:
        tar = libraries.get(package.name)
        block = {"device_library": None if tar is None else tar.name, "model_lib": package.name}
        return SimpleNamespace(manifest={"backends": {"mlc": block}}, file=lambda _: tar)

    monkeypatch.setattr(runtime_py.package, "read", read)
    return {name: Path(name) for name in (*libraries, "none")}


def members_of(archive: Path) -> list[str]:
    return subprocess.run(["ar", "t", archive], check=True, capture_output=True, text=True).stdout.split()


def test_the_libraries_of_all_packages_are_in_it(packages: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "libmodel_android.a"
    out.write_text("an old one")
    assert join([packages["first"], packages["second"]], out) == out
    assert len(members_of(out)) == 4
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    once = out.read_bytes()
    assert b"first___tvm_ffi__library_bin" in once and b"second___tvm_ffi__library_bin" in once
    join([packages["first"], packages["second"]], out)
    assert out.read_bytes() == once


def test_links_and_pipes_stay_what_they_are(packages: dict[str, Path], tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    join([packages["first"]], link)
    assert link.is_symlink() and len(members_of(tmp_path / "target")) == 2
    os.mkfifo(pipe)
    heard: list[bytes] = []
    listener = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    listener.start()
    join([packages["first"]], pipe)
    listener.join(30)
    assert heard == [(tmp_path / "target").read_bytes()] and pipe.is_fifo()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["first", "first"], "first comes twice"),
        (["none"], "none holds no phone library"),
        (["phone"], "phone.tar is no Android library"),
    ],
)
def test_what_is_refused_leaves_no_archive(packages: dict[str, Path], tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(PackageError, match=words):
        join([packages[name] for name in names], tmp_path / "out.a")
    assert not list(tmp_path.iterdir())
