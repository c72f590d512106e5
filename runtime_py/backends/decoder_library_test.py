"""Where a decoder library runs, where the graph alone does, and what is told of it."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends import processor, tvm_runtime
from runtime_py.backends.compiled_stage import ALIGNMENT, aligned
from runtime_py.backends.decoder_library import DecoderLibrary, chosen_variant
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.processor import VARIANTS
from runtime_py.backends.records import DECODER_LIBRARY
from runtime_py.errors import MachineError, PackageError
from runtime_py.model import load
from runtime_py.package import read, trust

FILES = dict.fromkeys(VARIANTS, "x.so")


def altered(package: Path, folder: Path, change: Any) -> Path:
    """A copy whose index, and with it the row of the manifest, is changed."""
    copy = Path(shutil.copytree(package, folder / "package"))
    index = copy / read(copy).manifest["backends"]["onnx"][DECODER_LIBRARY]["index"]
    told = json.loads(index.read_text(encoding="utf-8"))
    change(told)
    index.write_text(json.dumps(told), encoding="utf-8")
    return copy


def test_the_fastest_library_that_a_processor_runs_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(machine: str, *has: str) -> str:
        monkeypatch.setattr(processor, "architecture", lambda: machine)
        monkeypatch.setattr(processor, "instructions", lambda: set(has))
        return chosen_variant(FILES)

    every = {name: needed for name, (_, needed) in VARIANTS.items()}
    assert on("x86_64", *every["x86-64-vnni"]) == "x86-64-vnni"
    assert on("x86_64", *every["x86-64-v3"]) == "x86-64-v3"
    assert on("aarch64", *every["aarch64"]) == "aarch64"
    with pytest.raises(MachineError, match="runs none of the package's decoder libraries"):
        on("x86_64", "sse2")
    with pytest.raises(MachineError, match="riscv64"):
        on("riscv64")


def test_code_that_nobody_trusts_is_left_alone(
    library_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "trusted"))
    with caplog.at_level(logging.WARNING), load(library_package) as model:
        assert isinstance(model.backend, OrtBackend) and model.backend.library is None
    assert "code that nobody trusts here" in caplog.text
    fingerprint = read(library_package).fingerprint
    with load(library_package, trust=fingerprint) as model:
        assert isinstance(model.backend, OrtBackend) and model.backend.library is not None
    trust.remember(read(library_package))
    with load(library_package) as model:
        assert isinstance(model.backend, OrtBackend) and model.backend.library is not None


def test_trusted_code_that_is_another_file_is_refused(library_package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library_package, tmp_path / "package"))
    for file in read(copy).manifest["backends"]["onnx"][DECODER_LIBRARY]["libraries"].values():
        (copy / file).write_bytes((copy / file).read_bytes()[:-1] + b"x")
    with pytest.raises(PackageError, match="not the file of the trusted manifest"):
        load(copy, verify="off", trust=True)


def test_without_tvm_the_graph_answers_and_says_why(
    library_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tvm_runtime.importlib.metadata, "version", missing)
    with caplog.at_level(logging.WARNING), load(library_package, trust=True) as model:
        assert isinstance(model.backend, OrtBackend) and model.backend.library is None
        assert "apache-tvm is not installed" in model.backend.library_missing
    assert "pip install 'edgeproof[mlc]'" in caplog.text


def test_another_version_of_tvm_is_named(library_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tvm_runtime.importlib.metadata, "version", lambda name: "0.1")
    package = read(library_package)
    with pytest.raises(MachineError, match="cannot run a library of another version"):
        DecoderLibrary(package.folder, package.manifest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: told["parameters"][3].__setitem__(4, 1 << 40), "ends behind its file"),
        (lambda told: told["parameters"][3].__setitem__(4, 7), "at 7"),
        (lambda told: told["parameters"][3].__setitem__(1, "object"), "of object"),
        (lambda told: told["parameters"][3].__setitem__(2, [-1, 4]), r"\[-1, 4\]"),
        (lambda told: told["parameters"][3].pop(), "do not fit the package"),
        (lambda told: told.pop("caches"), "do not fit the package"),
        (lambda told: told["parameters"][3].__setitem__(3, "../../../etc/passwd"), "no row of its manifest's files"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(library_package: Path, tmp_path: Path, change: Any, words: str) -> None:
    package = read(altered(library_package, tmp_path, change))
    with pytest.raises(PackageError, match=words):
        DecoderLibrary(package.folder, package.manifest)


@pytest.mark.parametrize("tokens", [1, 3])
def test_caches_may_begin_at_any_number(library_package: Path, tokens: int) -> None:
    with load(library_package, trust=True, threads=1) as model:
        backend = model.backend
        assert isinstance(backend, OrtBackend) and backend.library is not None
        width = int(backend.contracts["decoder"].inputs[0].shape[-1])
        embeds = np.random.default_rng(0).standard_normal((1, tokens, width))
        given: dict[str, np.ndarray] = {"inputs_embeds": embeds.astype(np.float32), "position_ids": np.arange(tokens)[None]}
        right, shifted = backend.start(16), backend.start(16)
        shifted.buffers.arrays = {name: moved(array, 4) for name, array in shifted.buffers.arrays.items()}
        assert backend.library.takes(1, shifted.buffers)
        one, other = (backend.library.run(given, np.array([0]), state.buffers, np.array([-1])) for state in (right, shifted))
        assert np.array_equal(one, other)
        for name, array in right.buffers.arrays.items():
            assert np.array_equal(shifted.buffers.arrays[name], array) and array.any()


def moved(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins ``offset`` bytes behind where arrays are aligned."""
    room = np.empty(array.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT + offset
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def test_arrays_are_copied_only_where_they_lie_wrong() -> None:
    right, wrong = (moved(np.arange(4, dtype=np.float32), offset) for offset in (0, 4))
    assert aligned(right, right.dtype) is right
    for array, kind in ((wrong, wrong.dtype), (right, np.dtype(np.int32)), (right[::2], right.dtype)):
        copy = aligned(array, kind)
        assert copy.ctypes.data % ALIGNMENT == 0 and copy.dtype == kind and copy.flags.c_contiguous
        assert np.array_equal(copy, array)
    nothing = aligned(np.array([], np.int64), np.dtype(np.int64))
    assert nothing.size == 0 and nothing.strides == (8,)
