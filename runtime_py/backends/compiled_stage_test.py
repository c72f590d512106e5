"""Where a package's libraries run, where the graph alone does, and what is told of it: alike for every stage."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends import tvm_runtime
from runtime_py.backends.compiled_stage import ALIGNMENT, Place, Placed, aligned, where_it_runs
from runtime_py.backends.conftest import DECODER, TOWER, Kind
from runtime_py.backends.ort_providers import CPU
from runtime_py.backends.records import ONNX
from runtime_py.backends.vision_library import VisionLibrary
from runtime_py.errors import MachineError, PackageError
from runtime_py.model import load
from runtime_py.package import read, trust


@pytest.fixture(params=[DECODER, TOWER], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    made = request.param
    assert isinstance(made, Kind)
    return made


@pytest.fixture
def package(kind: Kind, request: pytest.FixtureRequest) -> Path:
    return kind.package(request)


def test_code_that_nobody_trusts_is_left_alone(
    kind: Kind, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "trusted"))
    with caplog.at_level(logging.WARNING), load(package) as model:
        assert kind.of(model) is None
    assert "code that nobody trusts here" in caplog.text
    given = read(package)
    assert any(kind.key in path for path in ONNX.paths(given.manifest["backends"][ONNX.name]).code)
    kind.opened(package)
    with load(package, trust=given.fingerprint) as model:
        assert kind.of(model) is not None
    trust.remember(given)
    with load(package) as model:
        assert kind.of(model) is not None


def test_trusted_code_that_is_another_file_is_refused(kind: Kind, package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    for file in read(copy).manifest["backends"]["onnx"][kind.key]["libraries"].values():
        (copy / file).write_bytes((copy / file).read_bytes()[:-1] + b"x")
    with pytest.raises(PackageError, match="not the file of the trusted manifest"):
        load(copy, verify="off", trust=True)


def test_without_tvm_the_graph_answers_and_says_why(
    kind: Kind, package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tvm_runtime.importlib.metadata, "version", missing)
    with caplog.at_level(logging.WARNING), load(package, trust=True) as model:
        assert kind.of(model) is None
        assert "apache-tvm is not installed" in getattr(model.backend, f"{kind.attribute}_missing")
    assert f"the {kind.key.replace('_', ' ')} of" in caplog.text and "pip install 'edgeproof[mlc]'" in caplog.text


def test_another_version_of_tvm_is_named(kind: Kind, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_runtime.importlib.metadata, "version", lambda name: "0.1")
    given = read(package)
    with pytest.raises(MachineError, match="cannot run a library of another version"):
        kind.opens(given.folder, given.manifest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told, table: told["parameters"][3].__setitem__(4, 1 << 40), "ends behind its file"),
        (lambda told, table: told["parameters"][3].__setitem__(4, 7), "at 7"),
        (lambda told, table: told["parameters"][3].__setitem__(1, "object"), "of object"),
        (lambda told, table: told["parameters"][3].__setitem__(1, "int4"), "of int4"),
        (lambda told, table: told["parameters"][3].__setitem__(2, [-1, 4]), r"\[-1, 4\]"),
        (lambda told, table: told["parameters"][3].pop(), "do not fit the package"),
        (lambda told, table: told.pop(table), "do not fit the package"),
        (lambda told, table: told["parameters"][3].__setitem__(3, "../../../etc/passwd"), "no row of its manifest's files"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    kind: Kind, package: Path, tmp_path: Path, change: Callable[..., Any], words: str
) -> None:
    kind.opened(package)
    given = kind.altered(package, tmp_path, lambda told: change(told, kind.table))
    with pytest.raises(PackageError, match=words):
        kind.opens(given.folder, given.manifest)


def test_a_table_of_another_file_is_refused(tower_package: Path, tmp_path: Path) -> None:
    TOWER.opened(tower_package)
    given = TOWER.altered(tower_package, tmp_path, lambda told: told["table"].__setitem__(3, "../../../etc/passwd"))
    with pytest.raises(PackageError, match="no row of its manifest's files"):
        VisionLibrary(given.folder, given.manifest)


def test_a_library_is_opened_where_the_package_has_one_and_the_processor_runs_it() -> None:
    opened: list[str] = []
    manifest: dict[str, Any] = {"backends": {ONNX.name: {"decoder_library": {}}}}

    def asked(key: str, provider: str) -> tuple[object, str]:
        def library() -> str:
            opened.append(key)
            return key

        return where_it_runs(Place(Path("package"), manifest, True, provider), key, library)

    assert asked("decoder_library", CPU) == ("decoder_library", "")
    for key, provider in (("vision_library", CPU), ("decoder_library", "CUDAExecutionProvider")):
        library, reason = asked(key, provider)
        assert library is None and "the processor runs it alone" in reason
    assert opened == ["decoder_library"]


def test_a_weight_is_the_bytes_that_its_row_names() -> None:
    content: np.ndarray = np.arange(140, dtype=np.uint8)
    weight = Placed("w", "float16", [2, 3], "file", 128).of(content)
    assert (weight.shape, weight.dtype) == ((2, 3), np.float16)
    assert weight.tobytes() == bytes(range(128, 140)) and np.shares_memory(weight, content)
    with pytest.raises(ValueError, match="parameter w ends behind its file"):
        Placed("w", "float16", [2, 3], "file", 128).of(content[:-1])


def test_arrays_are_copied_only_where_they_lie_wrong() -> None:
    right, wrong = (moved(np.arange(4, dtype=np.float32), offset) for offset in (0, 4))
    assert aligned(right, right.dtype) is right
    for array, kind in ((wrong, wrong.dtype), (right, np.dtype(np.int32)), (right[::2], right.dtype)):
        copy = aligned(array, kind)
        assert copy.ctypes.data % ALIGNMENT == 0 and copy.dtype == kind and copy.flags.c_contiguous
        assert np.array_equal(copy, array)
    nothing = aligned(np.array([], np.int64), np.dtype(np.int64))
    assert nothing.size == 0 and nothing.strides == (8,)


def moved(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins ``offset`` bytes behind where arrays are aligned."""
    room = np.empty(array.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT + offset
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
