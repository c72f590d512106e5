"""Kernels built for the processors that packages name, and called over NumPy's arrays as they lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

from export.processor.flat_rows import FlatHeads
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
    return lambda *given: kernel(*(tvm_ffi.from_dlpack(each) if isinstance(each, np.ndarray) else each for each in given))


def has_avx512_vnni() -> bool:
    about = Path("/proc/cpuinfo")
    return about.is_file() and "avx512_vnni" in about.read_text(encoding="utf-8")


def drawn(seed: int, *shape: int) -> np.ndarray:
    """float32, of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass
class AttentionCall:
    """What kernels of attention are given: rows of tokens, caches of sequences, and scales of those that hold bytes."""

    heads: FlatHeads
    qkv: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    scales: Sequence[np.ndarray]
    caches: Sequence[np.ndarray]

    @staticmethod
    def inputs(heads: FlatHeads, tokens: int, sequences: int, capacity: int) -> dict[str, Any]:
        """These fields, drawn; every position of the caches holds a number."""
        angles = np.abs(drawn(1, tokens, heads.rotary // 2)) * 3
        caches, scales = [], []
        for seed in (2, 3):
            array = drawn(seed, sequences, heads.keys, capacity, heads.width)
            if heads.cache == "int8":
                each = np.abs(drawn(seed + 2, heads.keys, heads.width)) * 0.02 + 0.01
                array = np.clip(np.rint(array / each[:, None]), -128, 127)
                scales.append(each.reshape(-1))
            array[..., heads.size :] = 0
            caches.append(array.astype(heads.cache))
        qkv = drawn(6, tokens, (heads.queries + 2 * heads.keys) * heads.size)
        return {
            "heads": heads,
            "qkv": qkv,
            "cos": np.cos(angles),
            "sin": np.sin(angles),
            "scales": scales,
            "caches": caches,
        }

    def rotated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float64 queries, keys and values (token, head, size)."""
        heads, half = self.heads, self.heads.rotary // 2
        x = self.qkv.reshape(len(self.qkv), -1, heads.size).astype(np.float64)
        cos, sin = (table[:, None].astype(np.float64) for table in (self.cos, self.sin))
        turned, split = x.copy(), (heads.queries, heads.queries + heads.keys)
        turned[..., :half] = x[..., :half] * cos - x[..., half : 2 * half] * sin
        turned[..., half : 2 * half] = x[..., half : 2 * half] * cos + x[..., :half] * sin
        return turned[:, : split[0]], turned[:, split[0] : split[1]], x[:, split[1] :]

    def attended(self, tokens: slice, sequence: int, seen: np.ndarray) -> np.ndarray:
        """float64 attention (token, queries * size) over a sequence of the caches as they lie after the call.

        Args:
            seen: int (token,), positions that each token sees, its own included.
        """
        heads, held = self.heads, []
        for side, cache in enumerate(self.caches):
            array = cache[sequence, :, : seen.max()].astype(np.float64)
            if self.scales:
                array = array * self.scales[side].reshape(heads.keys, 1, heads.width)
            held.append(np.repeat(array[..., : heads.size], heads.group, 0))
        scores = np.einsum("thd,hnd->thn", self.rotated()[0][tokens], held[0]) * heads.scale
        scores[np.broadcast_to(np.arange(scores.shape[2]) >= seen[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(2, keepdims=True))
        return np.einsum("thn,hnd->thd", weights / weights.sum(2, keepdims=True), held[1]).reshape(len(seen), -1)
