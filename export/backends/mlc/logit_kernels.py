"""The in-place kernels with which the MLC engine edits logits before sampling.

Arguments as mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/attach_logit_processor.py declares them: logits float32 (batch,
vocabulary), index arrays int32. Each kernel has one body and one of two loops around it: serial for a CPU, bound to
threads for a device, since the automatic scheduler refuses blocks that read what they write.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part
from export.processor.kernel_frame import array, kernel, sizes

THREADS = 256
"""Threads per block; what every OpenCL and Metal device offers."""


class AddLogitKernels(ModulePass):
    """Adds the three kernels, for a device or a CPU."""

    changes = frozenset({Part.NAMES})

    def __init__(self, device: bool) -> None:
        self.device = device

    def rewrite(self, mod: IRModule) -> IRModule:
        for name, function in logit_kernels(self.device).items():
            mod[name] = function
        return mod


def logit_kernels(device: bool) -> dict[str, tirx.PrimFunc]:
    """Name to kernel, for a device or a CPU."""
    made = {"apply_logit_bias_inplace": bias, "apply_penalty_inplace": penalty, "apply_bitmask_inplace": mask}
    return {name: write(device).with_attr("global_symbol", name) for name, write in made.items()}


def bias(device: bool) -> tirx.PrimFunc:
    """A number added to a logit by each entry."""
    with kernel(noalias=True) as builder:
        batch, vocabulary, entries = sizes("batch", "vocabulary", "entries")
        logits = array("logits", (batch, vocabulary), "float32")
        positions, tokens = (array(name, (entries,), "int32") for name in ("positions", "tokens"))
        added = array("bias", (entries,), "float32")

        def write(v: tirx.Var) -> None:
            place = positions[v], tokens[v]
            T.buffer_store(logits, logits[place] + added[v], place)

        each(device, "bias", write, entries)
    return builder.get()


def penalty(device: bool) -> tirx.PrimFunc:
    """Presence, then frequency by occurrences, then repetition, which has to lower a logit of either sign."""
    with kernel(noalias=True) as builder:
        batch, vocabulary, entries, count = sizes("batch", "vocabulary", "entries", "count")
        logits = array("logits", (batch, vocabulary), "float32")
        sequences = array("sequences", (count,), "int32")
        positions, tokens, counts = (array(name, (entries,), "int32") for name in ("positions", "tokens", "counts"))
        penalties = array("penalties", (count, 3), "float32")

        def write(v: tirx.Var) -> None:
            place = sequences[positions[v]], tokens[v]
            presence, frequency, repetition = (penalties[positions[v], which] for which in range(3))
            T.buffer_store(logits, logits[place] - (presence + T.cast(counts[v], "float32") * frequency), place)
            repeated = logits[place] * repetition, logits[place] / repetition
            T.buffer_store(logits, T.if_then_else(logits[place] < T.float32(0), *repeated), place)

        each(device, "penalty", write, entries)
    return builder.get()


def mask(device: bool) -> tirx.PrimFunc:
    """The least number for every token that a sequence must not go on with."""
    with kernel(noalias=True) as builder:
        batch, vocabulary, count = sizes("batch", "vocabulary", "count")
        logits = array("logits", (batch, vocabulary), "float32")
        sequences = array("sequences", (count,), "int32")
        bitmask = array("bitmask", (batch, (vocabulary + 31) // 32), "int32")

        def write(s: tirx.Var, v: tirx.Var) -> None:
            # bit v % 32 of word v // 32 allows token v; & 1 also drops the ones that a signed shift brings in from the left
            allowed = (bitmask[sequences[s], v // 32] >> (v % 32)) & 1 == 1
            place = sequences[s], v
            T.buffer_store(logits, T.if_then_else(allowed, logits[place], T.min_value("float32")), place)

        each(device, "mask", write, count, vocabulary)
    return builder.get()


def each(device: bool, name: str, write: Callable[..., None], *counts: tirx.Var) -> None:
    """A block that ``write`` writes for every place of one or two axes: a loop, or a thread of a device for each."""
    if not device:
        with T.grid(*counts) as loops, T.sblock(name):
            write(*map(T.axis.spatial, counts, loops if len(counts) > 1 else [loops]))
        return
    many = counts[0] if len(counts) == 1 else counts[0] * counts[1]
    with T.thread_binding((many + THREADS - 1) // THREADS, "blockIdx.x") as block:  # noqa: SIM117
        with T.thread_binding(THREADS, "threadIdx.x") as thread, T.sblock(name):
            number = block * THREADS + thread
            places = [number] if len(counts) == 1 else [number // counts[1], number % counts[1]]
            axes = [*map(T.axis.spatial, counts, places)]
            T.where(number < many)
            write(*axes)
