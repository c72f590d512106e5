"""Unmasked attention over all tokens, for vision towers and resamplers: scores and softmax in float32.

Both products read operands that were split by head first and reduce along their last axis: TVM's device schedules for
matrix products take nothing else, and put the split into the product's own loads. Where the scores of all queries would
be large, queries are taken in blocks of rows, one after the other, so that only one block's scores exist at a time.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.support import SCORE_BYTES, score_blocks

JOINED = 16
"""Blocks that one kernel joins; a kernel on Metal takes 31 buffers."""


def full_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, most: int = 0, score_bytes: int = SCORE_BYTES) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v per head; q (1, queries, width), k and v (1, keys, width), result like q.

    Args:
        most: tokens to divide into blocks for, when their number is symbolic.
        score_bytes: what the scores of one block may take.
    """
    blocks = score_blocks(heads, _known(q.shape[1], most), _known(k.shape[1], most), score_bytes)
    if blocks == 1:
        return _attend(q, k, v, heads)
    tokens = q.shape[1]
    rows = (tokens + blocks - 1) // blocks
    parts = [_attend(_rows(q, block * rows, rows), k, v, heads) for block in range(blocks)]
    while len(parts) > 1:
        parts = [_joined(parts[i : i + JOINED]) for i in range(0, len(parts), JOINED)]
    return _rows(parts[0], 0, tokens)


def _known(size: Any, most: int) -> int:
    return int(size) if isinstance(size, int | tirx.IntImm) else most


def _rows(x: Tensor, start: Any, count: Any) -> Tensor:
    """Rows ``start`` to ``start + count`` of x (1, tokens, width); past its end, the last one again."""

    def compute(x: te.Tensor) -> te.Tensor:
        last = x.shape[1] - 1
        shape = (1, count, x.shape[2])
        return te.compute(shape, lambda b, i, n: x[b, tirx.min(start + i, last), n], name="query_rows")

    return op.tensor_expr_op(compute, "query_rows", [x])


def _joined(parts: list[Tensor]) -> Tensor:
    return op.concat(parts, dim=1) if len(parts) > 1 else parts[0]


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
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
