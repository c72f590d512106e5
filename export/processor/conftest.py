"""Kernels built for the processors that packages name, and called over NumPy's arrays as they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

V3 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"}
V4 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]}
ARM64 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+dotprod"]}

Kernel = Callable[..., None]


def compiled(kernel: tirx.PrimFunc, target: dict[str, Any]) -> Any:
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return tvm.compile(IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}), target=Target(target))


def has_avx512_vnni() -> bool:
    about = Path("/proc/cpuinfo")
    return about.is_file() and "avx512_vnni" in about.read_text(encoding="utf-8")


@pytest.fixture(params=[V3, V4], ids=["v3", "v4"])
def built(request: pytest.FixtureRequest) -> Callable[[tirx.PrimFunc], Kernel]:
    """Of a kernel a function of arrays."""
    if request.param is V4 and not has_avx512_vnni():
        pytest.skip("this processor has no AVX-512 VNNI")

    def build(kernel: tirx.PrimFunc) -> Kernel:
        called = compiled(kernel, request.param)["kernel"]
        return lambda *arrays: called(*(tvm_ffi.from_dlpack(array) for array in arrays))

    return build


def drawn(seed: int, *shape: int) -> np.ndarray:
    """float32, of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
