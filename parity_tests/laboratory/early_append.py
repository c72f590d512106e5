"""A phone library's kernel that writes a chunk's keys and values, one position too early: a deliberate fault.

TVM's own is ``_kv_cache_transpose_append`` (relax/frontend/nn/llm/_page_kernels.py, 0.27.0.post1).
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import GlobalVar, IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part
from export.specs import DecoderSpec
from runtime_py.backends.mlc import PAGE
from runtime_py.errors import MachineError

REPLACED = "kv_cache_transpose_append"


class EarlyAppend(ModulePass):
    """With a filled cache, keys and values are written one position too early, over the last one; a first call is right.

    A call of several tokens reads its own keys and values beside the cache and writes them afterwards
    (``append_before_attn_`` in TVM's src/runtime/vm/paged_kv_cache.cc), so that the call behind it is the first to err.

    Args:
        dtype: the cache's.
        several: only in calls of several tokens, as behind a prompt's first chunk.
    """

    changes = frozenset({Part.KERNELS})

    def __init__(self, spec: DecoderSpec, dtype: str, several: bool) -> None:
        self.spec, self.dtype, self.several = spec, dtype, several

    def requires(self, mod: IRModule) -> None:
        """Raise MachineError when this TVM version calls the kernel differently.

        No AssertionError, which would say of a package that it has no place for the fault.
        """
        if len(_replaced(mod)) != 1 or len(mod[_replaced(mod)[0]].params) != 4:
            raise MachineError(
                f"this TVM has not one kernel {REPLACED} of four arguments but {_replaced(mod)}",
                "the kernel that early_append replaces", "mend early_append.py",
            )  # fmt: skip

    def rewrite(self, mod: IRModule) -> IRModule:
        variable = _replaced(mod)[0]
        kernel = early_append(self.spec.kv_heads, self.spec.head_dim, self.dtype, 1 if self.several else 0)
        mod[variable] = kernel.with_attr("global_symbol", variable.name_hint)
        return mod


def _replaced(mod: IRModule) -> list[GlobalVar]:
    names = [variable for variable in mod.get_global_vars() if REPLACED in variable.name_hint]
    return [variable for variable in names if "mla" not in variable.name_hint]


def early_append(heads: int, channels: int, dtype: str, least: int) -> tirx.PrimFunc:
    """Keys and values (tokens, heads, channels) into pages; early in calls of more than ``least`` tokens."""

    @T.prim_func(s_tir=True)
    def append(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
        T.func_attr({"tirx.noalias": True})
        tokens = T.Var("num_tokens_excluding_cache", "int64")
        count, pages_offset = T.int64(), T.int64()
        map_offset = T.int32()
        pages = T.match_buffer(a, (count, 2, heads, PAGE, channels), dtype, elem_offset=pages_offset)
        keys = T.match_buffer(b, (tokens, heads, channels), dtype)
        values = T.match_buffer(c, (tokens, heads, channels), dtype)
        places = T.match_buffer(d, (tokens,), "int32", elem_offset=map_offset)
        for token, head, channel in T.grid(tokens, heads, channels):
            if places[token] != T.int32(-1):
                with T.sblock("keys"):
                    t, h, f = T.axis.remap("SSS", [token, head, channel])
                    T.reads(places[t], places[0], keys[t, h, f])
                    T.writes(pages[0:count, 0, h, 0:PAGE, f])
                    early: T.int32 = T.if_then_else(places[0] > 0 and tokens > least, 1, 0)  # type: ignore
                    pages[(places[t] - early) // PAGE, 0, h, (places[t] - early) % PAGE, f] = keys[t, h, f]
                with T.sblock("values"):
                    t, h, f = T.axis.remap("SSS", [token, head, channel])
                    T.reads(places[t], places[0], values[t, h, f])
                    T.writes(pages[0:count, 1, h, 0:PAGE, f])
                    early: T.int32 = T.if_then_else(places[0] > 0 and tokens > least, 1, 0)  # type: ignore
                    pages[(places[t] - early) // PAGE, 1, h, (places[t] - early) % PAGE, f] = values[t, h, f]

    return append
