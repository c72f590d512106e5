"""The in-place kernels with which the MLC engine edits logits before sampling.

Arguments as mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/attach_logit_processor.py declares them: logits float32 (batch,
vocabulary), index arrays int32. Each kernel has one body (a macro) and two loops around it: serial for a CPU, bound to
threads for a device, since the automatic scheduler refuses blocks that read what they write.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part

THREADS = 256
"""Threads per block; what every OpenCL and Metal device offers."""


class AddLogitKernels(ModulePass):
    """Adds the three kernels, for a device or a CPU."""

    changes = frozenset({Part.NAMES})

    def __init__(self, device: bool) -> None:
        self.device = device

    def rewrite(self, mod: IRModule) -> IRModule:
        for name, kernel in logit_kernels(self.device).items():
            mod[name] = kernel
        return mod


def logit_kernels(device: bool) -> dict[str, tirx.PrimFunc]:
    """Name to kernel, for a device or a CPU."""
    kernels = DEVICE if device else HOST
    names = ("apply_logit_bias_inplace", "apply_penalty_inplace", "apply_bitmask_inplace")
    return {
        name: kernel.with_attr("global_symbol", name).with_attr("tirx.is_scheduled", True)
        for name, kernel in zip(names, kernels, strict=True)
    }


@T.macro
def _bias(v, logits, positions, tokens, bias):
    logits[positions[v], tokens[v]] = logits[positions[v], tokens[v]] + bias[v]


@T.macro
def _penalty(v, logits, sequences, positions, tokens, counts, penalties):
    # presence, then frequency times the number of occurrences, then repetition, which has to lower a logit of either sign
    logits[sequences[positions[v]], tokens[v]] = logits[sequences[positions[v]], tokens[v]] - (
        penalties[positions[v], 0] + T.cast(counts[v], "float32") * penalties[positions[v], 1]
    )
    logits[sequences[positions[v]], tokens[v]] = T.if_then_else(
        logits[sequences[positions[v]], tokens[v]] < T.float32(0),
        logits[sequences[positions[v]], tokens[v]] * penalties[positions[v], 2],
        logits[sequences[positions[v]], tokens[v]] / penalties[positions[v], 2],
    )


@T.macro
def _mask(s, v, logits, sequences, bitmask):
    # bit v % 32 of word v // 32 allows token v; & 1 also drops the ones that a signed shift brings in from the left
    logits[sequences[s], v] = T.if_then_else(
        (bitmask[sequences[s], v // 32] >> (v % 32)) & 1 == 1, logits[sequences[s], v], T.min_value("float32")
    )


@T.prim_func(s_tir=True)
def _bias_host(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, entries = T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    positions = T.match_buffer(b, (entries,), "int32")
    tokens = T.match_buffer(c, (entries,), "int32")
    bias = T.match_buffer(d, (entries,), "float32")
    for i in range(entries):
        with T.sblock("bias"):
            v = T.axis.spatial(entries, i)
            _bias(v, logits, positions, tokens, bias)


@T.prim_func(s_tir=True)
def _bias_device(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, entries = T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    positions = T.match_buffer(b, (entries,), "int32")
    tokens = T.match_buffer(c, (entries,), "int32")
    bias = T.match_buffer(d, (entries,), "float32")
    for block in T.thread_binding((entries + THREADS - 1) // THREADS, "blockIdx.x"):
        for thread in T.thread_binding(THREADS, "threadIdx.x"):
            with T.sblock("bias"):
                v = T.axis.spatial(entries, block * THREADS + thread)
                T.where(block * THREADS + thread < entries)
                _bias(v, logits, positions, tokens, bias)


@T.prim_func(s_tir=True)
def _penalty_host(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, entries, count = T.int32(), T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    sequences = T.match_buffer(b, (count,), "int32")
    positions = T.match_buffer(c, (entries,), "int32")
    tokens = T.match_buffer(d, (entries,), "int32")
    counts = T.match_buffer(e, (entries,), "int32")
    penalties = T.match_buffer(f, (count, 3), "float32")
    for i in range(entries):
        with T.sblock("penalty"):
            v = T.axis.spatial(entries, i)
            _penalty(v, logits, sequences, positions, tokens, counts, penalties)


@T.prim_func(s_tir=True)
def _penalty_device(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, entries, count = T.int32(), T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    sequences = T.match_buffer(b, (count,), "int32")
    positions = T.match_buffer(c, (entries,), "int32")
    tokens = T.match_buffer(d, (entries,), "int32")
    counts = T.match_buffer(e, (entries,), "int32")
    penalties = T.match_buffer(f, (count, 3), "float32")
    for block in T.thread_binding((entries + THREADS - 1) // THREADS, "blockIdx.x"):
        for thread in T.thread_binding(THREADS, "threadIdx.x"):
            with T.sblock("penalty"):
                v = T.axis.spatial(entries, block * THREADS + thread)
                T.where(block * THREADS + thread < entries)
                _penalty(v, logits, sequences, positions, tokens, counts, penalties)


@T.prim_func(s_tir=True)
def _mask_host(a: T.handle, b: T.handle, c: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, count = T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    sequences = T.match_buffer(b, (count,), "int32")
    bitmask = T.match_buffer(c, (batch, (vocabulary + 31) // 32), "int32")
    for i, j in T.grid(count, vocabulary):
        with T.sblock("mask"):
            s, v = T.axis.remap("SS", [i, j])
            _mask(s, v, logits, sequences, bitmask)


@T.prim_func(s_tir=True)
def _mask_device(a: T.handle, b: T.handle, c: T.handle):
    T.func_attr({"tirx.noalias": True})
    batch, vocabulary, count = T.int32(), T.int32(), T.int32()
    logits = T.match_buffer(a, (batch, vocabulary), "float32")
    sequences = T.match_buffer(b, (count,), "int32")
    bitmask = T.match_buffer(c, (batch, (vocabulary + 31) // 32), "int32")
    for block in T.thread_binding((count * vocabulary + THREADS - 1) // THREADS, "blockIdx.x"):
        for thread in T.thread_binding(THREADS, "threadIdx.x"):
            with T.sblock("mask"):
                s = T.axis.spatial(count, (block * THREADS + thread) // vocabulary)
                v = T.axis.spatial(vocabulary, (block * THREADS + thread) % vocabulary)
                T.where(block * THREADS + thread < count * vocabulary)
                _mask(s, v, logits, sequences, bitmask)


HOST = (_bias_host, _penalty_host, _mask_host)
DEVICE = (_bias_device, _penalty_device, _mask_device)
