"""Kernels that laboratory programs time: compiled as libraries are, and a plain read to hold them against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T
from tvm.target import Target

OPTIONS = {"tirx.disable_cse_tir": True, "relax.backend.use_cuda_graph": False}
"""As libraries are compiled."""

PARTS = 8
"""Of an array, read side by side by the plain read."""


def compiled(module: IRModule, target: Target) -> tvm.runtime.Module:
    with tvm.transform.PassContext(config=OPTIONS):
        return tvm.compile(module, target=target)


def kernel_of(function: tirx.PrimFunc, target: Target) -> Callable[..., None]:
    """It alone, compiled."""
    return compiled(IRModule({"kernel": function.with_attr("global_symbol", "kernel")}), target)["kernel"]


def as_words(array: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
    """The bytes of a tensor as 32-bit words, in blocks that the plain read takes; a rest is left out."""
    words = array.numpy().reshape(-1).view(np.uint32)
    return tvm.runtime.tensor(words[: len(words) // (PARTS * 32) * PARTS * 32].reshape(PARTS, -1))


def plain_read() -> tirx.PrimFunc:
    """uint32 (PARTS, words) to the XOR of every 32nd word of each part: all is read, and little else is done."""

    @T.prim_func(s_tir=True)
    def read(a: T.handle, b: T.handle):
        length = T.int64()
        given = T.match_buffer(a, (PARTS, length), "uint32")
        joined = T.match_buffer(b, (PARTS, 32), "uint32")
        for part in T.parallel(PARTS):
            with T.sblock("part"):
                T.reads(given[part, 0:length])
                T.writes(joined[part, 0:32])
                kept = T.sblock_alloc_buffer((4, 8), "uint32", scope="local")
                for k in T.unroll(4):
                    kept[k, T.ramp(0, 1, 8)] = T.broadcast(T.uint32(0), 8)
                for at in T.serial(length // T.int64(32)):
                    for k in T.unroll(4):
                        kept[k, T.ramp(0, 1, 8)] = T.bitwise_xor(
                            kept[k, T.ramp(0, 1, 8)],
                            given[part, T.ramp(at * T.int64(32) + T.Cast("int64", k) * T.int64(8), T.int64(1), 8)],
                        )
                for k in T.unroll(4):
                    joined[part, T.ramp(8 * k, 1, 8)] = kept[k, T.ramp(0, 1, 8)]

    return read
