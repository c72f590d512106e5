"""Kernels built for the processors that packages name, and called over NumPy's arrays as they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

from export.processor.targets import TARGETS

X86 = {"v3": TARGETS["x86-64-v3"], "v4": TARGETS["x86-64-vnni"]}
ARM64 = TARGETS["aarch64"]

Kernel = Callable[..., None]


def compiled(kernel: tirx.PrimFunc, target: dict[str, Any]) -> Any:
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return tvm.compile(IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")}), target=Target(target))


@functools.cache
def of_processor(place: str, make: Callable[..., tirx.PrimFunc], *given: Hashable) -> Kernel:
    """A function of arrays: the kernel that ``make`` gives, built once for a processor of X86."""
    if place == "v4" and not has_avx512_vnni():
        pytest.skip("this processor has no AVX-512 VNNI")
    kernel = compiled(make(*given), X86[place])["kernel"]
    return lambda *arrays: kernel(*(tvm_ffi.from_dlpack(array) for array in arrays))


def has_avx512_vnni() -> bool:
    about = Path("/proc/cpuinfo")
    return about.is_file() and "avx512_vnni" in about.read_text(encoding="utf-8")


def drawn(seed: int, *shape: int) -> np.ndarray:
    """float32, of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
