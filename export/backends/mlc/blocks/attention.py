"""Unmasked attention over all tokens, for vision towers and resamplers: scores and softmax in float32."""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op


def full_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v per head; q (1, queries, width), k and v (1, keys, width), result like q."""
    width, dtype = int(q.shape[2]), q.dtype
    head_dim = width // heads

    def scores(q: te.Tensor, k: te.Tensor) -> te.Tensor:
        d = te.reduce_axis((0, head_dim), name="d")
        product = te.compute(
            (heads, q.shape[1], k.shape[1]),
            lambda h, i, j: te.sum(
                q[0, i, h * head_dim + d].astype("float32") * k[0, j, h * head_dim + d].astype("float32"), axis=d
            ),
            name="scores",
        )
        scale = tirx.const(head_dim**-0.5, "float32")
        return te.compute(product.shape, lambda h, i, j: product[h, i, j] * scale, name="scaled")

    def mixed(weights: te.Tensor, v: te.Tensor) -> te.Tensor:
        j = te.reduce_axis((0, v.shape[1]), name="j")
        product = te.compute(
            (heads, weights.shape[1], head_dim),
            lambda h, i, d: te.sum(weights[h, i, j].astype("float32") * v[0, j, h * head_dim + d].astype("float32"), axis=j),
            name="mixed",
        )
        return te.compute(
            (1, weights.shape[1], width),
            lambda b, i, n: product[n // head_dim, i, n % head_dim].astype(dtype),
            name="joined",
        )

    weights = op.softmax(op.tensor_expr_op(scores, "attention_scores", [q, k]), axis=-1).astype(dtype)
    return op.tensor_expr_op(mixed, "attention_mix", [weights, v])
