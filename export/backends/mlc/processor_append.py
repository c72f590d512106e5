"""Keys and values of a call's rows are kept in the paged cache on a processor, a head at a time.

TVM's own kernel (apache-tvm 0.27.0.post1, relax/frontend/nn/llm/_page_kernels.py, _kv_cache_transpose_append) finds the
page of every number anew, on one core.
"""

from __future__ import annotations

from tvm.ir import IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part, require_kernels
from export.processor.online_softmax import PAGE
from export.specs import DecoderSpec

APPEND = "tir_kv_cache_transpose_append"


class AppendOnProcessor(ModulePass):
    """Replaces TVM's kernel."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self.spec, self.dtype = spec, dtype

    def requires(self, mod: IRModule) -> None:
        """Raise AssertionError when this TVM version calls the kernel differently."""
        require_kernels(mod, {APPEND: 4})

    def rewrite(self, mod: IRModule) -> IRModule:
        kernel = append_kernel(self.spec.kv_heads, self.spec.head_dim, self.dtype)
        mod[mod.get_global_var(APPEND)] = kernel.with_attr("global_symbol", APPEND)
        return mod


def append_kernel(heads: int, size: int, dtype: str):
    """k, v (rows, heads, size) into pages (pages, 2, heads, PAGE, size) at the rows' positions; nothing of a row at -1."""

    @T.prim_func(s_tir=True)
    def append(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        rows, count = T.int64(), T.int64()
        first, offset = T.int64(), T.int32()
        pages = T.match_buffer(a, (count, 2, heads, PAGE, size), dtype, elem_offset=first)
        k = T.match_buffer(b, (rows, heads, size), dtype)
        v = T.match_buffer(c, (rows, heads, size), dtype)
        positions = T.match_buffer(d, (rows,), "int32", elem_offset=offset)
        for row in T.parallel(rows):
            with T.sblock("append"):
                T.reads(k[row, 0:heads, 0:size], v[row, 0:heads, 0:size], positions[row])
                T.writes(pages[0:count, 0:2, 0:heads, 0:PAGE, 0:size])
                if positions[row] != -1:
                    for head in T.serial(heads):
                        for element in T.vectorized(size):
                            pages[positions[row] // PAGE, 0, head, positions[row] % PAGE, element] = k[row, head, element]
                        for element in T.vectorized(size):
                            pages[positions[row] // PAGE, 1, head, positions[row] % PAGE, element] = v[row, head, element]

    return append
