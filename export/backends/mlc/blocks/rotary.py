"""Rotary positions outside the cache, for models whose positions are not the cache's own.

Half-split rotation in float32, as export.modules.kernels.rotate; positions may be shared (CogVLM2), come on three axes
(M-RoPE) and use frequencies that the checkpoint stores.
"""

from __future__ import annotations

import itertools

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op

from export.specs import RopeSpec


def decoder_angles(rope: RopeSpec, positions: Tensor, frequencies: Tensor | None) -> Tensor:
    """float32 (tokens, dim / 2) radians from int32 positions (axes, 1, tokens), one axis without sections."""
    half = rope.dim // 2
    ends = list(itertools.accumulate(rope.sections)) or [half]

    def compute(positions: te.Tensor, *stored: te.Tensor) -> te.Tensor:
        def value(token: tirx.Var, f: tirx.Var) -> tirx.Expr:
            axis = tirx.const(len(ends) - 1, "int64")
            for index in range(len(ends) - 2, -1, -1):
                axis = tirx.Select(f < ends[index], tirx.const(index, "int64"), axis)
            position = positions[axis, 0, token].astype("float32")
            if stored:
                return position * stored[0][f].astype("float32")
            exponent = f.astype("float32") * tirx.const(2.0 / rope.dim, "float32")
            return position / tirx.power(tirx.const(rope.theta, "float32"), exponent)

        return te.compute((positions.shape[2], half), value, name="angles")

    return op.tensor_expr_op(compute, "rotary_angles", [positions, *([] if frequencies is None else [frequencies])])


def rotate_heads(x: Tensor, angles: Tensor, heads: int) -> Tensor:
    """Rotate the first ``heads`` heads of x (1, tokens, all heads, head_dim) by angles (tokens, head_dim / 2)."""
    half = int(x.shape[3]) // 2

    def compute(x: te.Tensor, angles: te.Tensor) -> te.Tensor:
        def value(b: tirx.Var, t: tirx.Var, h: tirx.Var, d: tirx.Var) -> tirx.Expr:
            angle = angles[t, d % half]
            here = x[b, t, h, d].astype("float32")
            other = x[b, t, h, (d + half) % (2 * half)].astype("float32")
            turned = here * tirx.cos(angle) + tirx.Select(d < half, -other, other) * tirx.sin(angle)
            return tirx.Select(h < heads, turned, here).astype(x.dtype)

        return te.compute(x.shape, value, name="rotate_heads")

    return op.tensor_expr_op(compute, "rotate_heads", [x, angles])
