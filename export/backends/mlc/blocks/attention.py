"""Unmasked attention over all tokens, for vision towers and resamplers: scores and softmax in float32.

Both products read operands that were split by head first and reduce along their last axis: TVM's device schedules for
matrix products take nothing else, and put the split into the product's own loads.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op


def full_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v per head; q (1, queries, width), k and v (1, keys, width), result like q."""
    width, dtype = int(q.shape[2]), q.dtype
    head_dim = width // heads

    def scores(q: te.Tensor, k: te.Tensor) -> te.Tensor:
        product = _product(_by_head(q, heads, "queries"), _by_head(k, heads, "keys"), "scores")
        scale = tirx.const(head_dim**-0.5, "float32")
        return te.compute(product.shape, lambda h, i, j: product[h, i, j] * scale, name="scaled")

    def mixed(weights: te.Tensor, v: te.Tensor) -> te.Tensor:
        values = te.compute(
            (heads, head_dim, v.shape[1]), lambda h, d, j: v[0, j, h * head_dim + d], name="values_by_channel"
        )
        product = _product(weights, values, "mixed")
        return te.compute(
            (1, weights.shape[1], width),
            lambda b, i, n: product[n // head_dim, i, n % head_dim].astype(dtype),
            name="joined",
        )

    weights = op.softmax(op.tensor_expr_op(scores, "attention_scores", [q, k]), axis=-1).astype(dtype)
    return op.tensor_expr_op(mixed, "attention_mix", [weights, v])


def _by_head(x: te.Tensor, heads: int, name: str) -> te.Tensor:
    """(1, tokens, width) to (heads, tokens, head_dim)."""
    head_dim = x.shape[2] // heads
    return te.compute((heads, x.shape[1], head_dim), lambda h, i, d: x[0, i, h * head_dim + d], name=name)


def _product(left: te.Tensor, right: te.Tensor, name: str) -> te.Tensor:
    """(heads, rows, k) times (heads, columns, k) to float32 (heads, rows, columns)."""
    k = te.reduce_axis((0, left.shape[2]), name="k")
    return te.compute(
        (left.shape[0], left.shape[1], right.shape[1]),
        lambda h, i, j: te.sum(left[h, i, k].astype("float32") * right[h, j, k].astype("float32"), axis=k),
        name=name,
    )
