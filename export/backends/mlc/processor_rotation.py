"""The cache's rotation of queries and keys on a processor: the angles of a position are found once for all its heads.

TVM's own kernel (apache-tvm 0.27.0.post1, relax/frontend/nn/llm/position_embedding.py, llama_rope_with_position_map) takes a
power, a cosine and a sine for every element of every head. Angles and products are its own, so the numbers are the same.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import IRModule
from tvm.relax.frontend.nn.llm.position_embedding import rope_freq_default
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part, require_kernels
from export.specs import DecoderSpec

ROTATION = "fused_rope"


class RotateOnProcessor(ModulePass):
    """Replaces TVM's kernel, where all of a head is rotated."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self.spec, self.dtype = spec, dtype

    def requires(self, mod: IRModule) -> None:
        """Raise AssertionError when this TVM version calls the kernel differently."""
        require_kernels(mod, {ROTATION: 6})

    def rewrite(self, mod: IRModule) -> IRModule:
        if self.spec.rope.dim == self.spec.head_dim:
            kernel = rotation_kernel(self.spec, self.dtype)
            mod[mod.get_global_var(ROTATION)] = kernel.with_attr("global_symbol", ROTATION)
        return mod


def angle_of(position: tirx.Expr, element: tirx.Expr, spec: DecoderSpec) -> tirx.Expr:
    """float32: of one position and one element of a head, as TVM computes it."""
    (angle,) = rope_freq_default(position * tirx.const(1, "float32"), element, spec.rope.dim, spec.rope.theta, "float32")[
        2
    ].values()
    return angle


def rotation_kernel(spec: DecoderSpec, dtype: str) -> tirx.PrimFunc:
    """qkv (rows, heads + 2 key heads, size) taken apart, queries and keys rotated by the rows' positions if ``rotated``."""
    n_queries, n_keys, size = spec.heads, spec.kv_heads, spec.head_dim
    half, together = size // 2, n_queries + 2 * n_keys

    @T.prim_func(s_tir=True)
    def rotation(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, rotated: T.int64):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": True})
        rows, offset = T.int32(), T.int32()
        qkv = T.match_buffer(a, (rows, together, size), dtype)
        positions = T.match_buffer(b, (rows,), "int32", elem_offset=offset)
        q = T.match_buffer(c, (rows, n_queries, size), dtype)
        k = T.match_buffer(d, (rows, n_keys, size), dtype)
        v = T.match_buffer(e, (rows, n_keys, size), dtype)
        for row in T.parallel(rows):
            with T.sblock("rotation"):
                T.reads(qkv[row, 0:together, 0:size], positions[row])
                T.writes(q[row, 0:n_queries, 0:size], k[row, 0:n_keys, 0:size], v[row, 0:n_keys, 0:size])
                cosine = T.sblock_alloc_buffer((half,), "float32")
                sine = T.sblock_alloc_buffer((half,), "float32")
                for element in T.serial(half):
                    cosine[element] = 1.0
                    sine[element] = 0.0
                if rotated > 0:
                    for element in T.serial(half):
                        sine[element] = angle_of(positions[row], element, spec)
                        cosine[element] = T.cos(sine[element])
                        sine[element] = T.sin(sine[element])
                for head in T.serial(n_queries):
                    for element in T.vectorized(half):
                        q[row, head, element] = T.Cast(dtype, turned(qkv, cosine, sine, row, head, element, half, -1))
                    for element in T.vectorized(half):
                        q[row, head, half + element] = T.Cast(dtype, turned(qkv, cosine, sine, row, head, element, half, 1))
                for head in T.serial(n_keys):
                    for element in T.vectorized(half):
                        k[row, head, element] = T.Cast(
                            dtype, turned(qkv, cosine, sine, row, n_queries + head, element, half, -1)
                        )
                    for element in T.vectorized(half):
                        k[row, head, half + element] = T.Cast(
                            dtype, turned(qkv, cosine, sine, row, n_queries + head, element, half, 1)
                        )
                    for element in T.vectorized(size):
                        v[row, head, element] = qkv[row, n_queries + n_keys + head, element]

    return rotation


def turned(qkv, cosine, sine, row, head, element, half, side):
    """float32: an element of the lower half of a head (side -1), or of the upper one (1), rotated."""
    lower, upper = (T.Cast("float32", qkv[row, head, at]) for at in (element, half + element))
    if side < 0:
        return cosine[element] * lower + sine[element] * -upper
    return cosine[element] * upper + sine[element] * lower
