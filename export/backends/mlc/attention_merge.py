"""A race-free kernel that joins the two halves of chunked prefill: attention to the chunk and to the cached past.

TVM's own (relax/frontend/nn/llm/_decode_kernels.py, _merge_state_inplace, 0.27.0.post1) lets every thread of a row read
the row's log-sum-exp and one of them overwrite it with no barrier between; where threads do not run in lockstep, as on
PoCL, the second chunk of a prompt comes out wrong (logits off by 60 %). Here one thread owns one row of one head.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part

REPLACED = "tir_attention_merge_state"
THREADS = 256


class SafeMerge(ModulePass):
    """Replaces TVM's device kernel; arguments and meaning are the same. ``dtype`` is the cache's."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def requires(self, mod: IRModule) -> None:
        """Raise AssertionError when this TVM version calls the kernel differently."""
        replaced = _replaced(mod)
        if len(replaced) != 1 or len(mod[replaced[0]].params) != 4:
            raise AssertionError(f"expected one kernel {REPLACED} of four arguments, found {replaced}")

    def rewrite(self, mod: IRModule) -> IRModule:
        variable = _replaced(mod)[0]
        mod[variable] = merge_kernel(self.dtype).with_attr("global_symbol", variable.name_hint)
        return mod


def _replaced(mod: IRModule) -> list[GlobalVar]:
    return [variable for variable in mod.get_global_vars() if variable.name_hint.startswith(REPLACED)]


def merge_kernel(dtype: str) -> tirx.PrimFunc:
    """Values (rows, heads, channels) and base-2 log-sum-exps (rows, heads) of two parts, joined into the first."""

    @T.prim_func(s_tir=True)
    def merge(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
        T.func_attr({"tirx.is_scheduled": True})
        rows, heads, channels = T.int32(), T.int32(), T.int32()
        values = T.match_buffer(a, (rows, heads, channels), dtype)
        sums = T.match_buffer(b, (rows, heads), "float32")
        other_values = T.match_buffer(c, (rows, heads, channels), dtype)
        other_sums = T.match_buffer(d, (rows, heads), "float32")
        for block in T.thread_binding((rows * heads + THREADS - 1) // THREADS, "blockIdx.x"):
            for thread in T.thread_binding(THREADS, "threadIdx.x"):
                with T.sblock("merge"):
                    row = T.axis.spatial(rows, (block * THREADS + thread) // heads)
                    head = T.axis.spatial(heads, (block * THREADS + thread) % heads)
                    T.where(block * THREADS + thread < rows * heads)
                    largest = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    share = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    # powers of the difference from the larger one: neither can overflow
                    largest[0] = T.max(sums[row, head], other_sums[row, head])
                    share[0] = T.exp2(sums[row, head] - largest[0])
                    share[1] = T.exp2(other_sums[row, head] - largest[0])
                    for channel in T.serial(channels):
                        values[row, head, channel] = T.cast(
                            (
                                T.cast(values[row, head, channel], "float32") * share[0]
                                + T.cast(other_values[row, head, channel], "float32") * share[1]
                            )
                            / (share[0] + share[1]),
                            dtype,
                        )
                    # the one write to `sums`, after all reads of this row and head by the same thread
                    sums[row, head] = T.log2(share[0] + share[1]) + largest[0]

    return merge
