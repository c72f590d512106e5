"""Kernels of an MLC package for more instructions than its library here needs: they are the library's, and change no bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.check.candidate import open_candidate
from parity_tests.check.package_questions import questions
from parity_tests.judging.probes import Recording, record
from parity_tests.laboratory.mlc_tamper import replaced
from runtime_py.backends import processor
from runtime_py.backends.processor import VARIANTS, fastest_variant
from runtime_py.backends.records import HOST_KERNELS, MLC
from runtime_py.errors import PackageError
from runtime_py.package import read, trust

STEPS = 3
PRECISIONS = ("int4", "q4f32_1")
VNNI = pytest.mark.skipif(fastest_variant(VARIANTS) != "x86-64-vnni", reason="this processor lacks AVX-512 with VNNI")


def products(library: Path) -> set[bytes]:
    """Names of the functions that a library is asked for."""
    return set(re.findall(rb"__tvm_ffi_(\w*int4_matmul\w*)\0", library.read_bytes()))


def said(package: Path) -> Recording:
    candidate = open_candidate(package)
    asked = questions(candidate.processor, 1, candidate.limits.context, STEPS)[0]
    return record(candidate.backend, candidate.processor, candidate.limits, asked, STEPS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kernel_is_one_of_the_library(exported: Callable[..., Path], precision: str) -> None:
    package = read(exported("minicpm-v", "android", precision))
    block = MLC.block(package.manifest)
    library, own = package.folder / block["host_library"], block.get(HOST_KERNELS, {})
    if processor.architecture() != "x86_64":
        assert own == {}
        return
    assert list(own) == ["x86-64-vnni"] and set(own.values()) <= set(trust.code_files(package.manifest))
    kernels = products(package.folder / own["x86-64-vnni"])
    assert kernels and kernels <= products(library)


@VNNI
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_processor_without_them_is_told_the_same(
    exported: Callable[..., Path], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = exported("minicpm-v", "android", precision)
    with_kernels = said(package).flattened()
    monkeypatch.setattr(processor, "instructions", lambda *_: set(VARIANTS["x86-64-v3"][1]))
    alone = said(package).flattened()
    assert with_kernels.keys() == alone.keys()
    for name, array in alone.items():
        np.testing.assert_array_equal(with_kernels[name], array, err_msg=name)


@VNNI
def test_they_run_in_place_of_the_librarys(
    exported: Callable[..., Path], copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library's own products are found no more, the kernels do all the work; without them nothing does."""
    package = copied("minicpm-v", "android", "int4")
    # from another path: the loader takes a path that it has loaded for the same library
    whole = said(exported("minicpm-v", "android", "int4")).flattened()
    block = MLC.block(read(package).manifest)
    library, content = package / block["host_library"], (package / block["host_library"]).read_bytes()
    for product in products(package / block[HOST_KERNELS]["x86-64-vnni"]):
        content = content.replace(b"__tvm_ffi_" + product, b"__tvm_gone" + product)
    replaced(package, library, content)
    monkeypatch.setenv(trust.VARIABLE, str(tmp_path / "trusted"))
    trust.remember(read(package))
    for name, array in said(package).flattened().items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)
    monkeypatch.setattr(processor, "instructions", lambda *_: set(VARIANTS["x86-64-v3"][1]))
    with pytest.raises(PackageError, match="int4_matmul"):
        said(package)
