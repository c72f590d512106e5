"""Unmasked attention over all tokens, for vision towers and resamplers: scores and softmax in float32.

Both products read operands that were split by head first and reduce along their last axis: TVM's device schedules for
matrix products take nothing else, and put the split into the product's own loads. Where the scores of all queries would
be large, queries are taken in blocks of rows, one after the other, so that only one block's scores exist at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.support import SCORE_BYTES, score_blocks

JOINED = 16
"""Blocks that one kernel joins; a kernel on Metal takes 31 buffers."""


@dataclass(frozen=True)
class Columns:
    """Columns ``first`` to ``first + width`` of x (1, tokens, all columns), read where they lie."""

    x: Tensor
    first: int
    width: int


def packed_attention(qkv: Tensor, heads: int, most: int = 0, score_bytes: int = SCORE_BYTES) -> Tensor:
    """`full_attention` of queries, keys and values that lie side by side, (1, tokens, 3 * width); none of them is copied."""
    width = int(qkv.shape[2]) // 3
    q, k, v = (Columns(qkv, number * width, width) for number in range(3))
    return _in_blocks(q, k, v, heads, most, score_bytes)


def full_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, most: int = 0, score_bytes: int = SCORE_BYTES) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v per head; q (1, queries, width), k and v (1, keys, width), result like q.

    Args:
        most: tokens to divide into blocks for, when their number is symbolic.
        score_bytes: what the scores of one block may take.
    """
    queries, keys, values = (Columns(x, 0, int(x.shape[2])) for x in (q, k, v))
    return _in_blocks(queries, keys, values, heads, most, score_bytes)


def _in_blocks(q: Columns, k: Columns, v: Columns, heads: int, most: int, score_bytes: int) -> Tensor:
    tokens = q.x.shape[1]
    blocks = score_blocks(heads, _known(tokens, most), _known(k.x.shape[1], most), score_bytes)
    if blocks == 1:
        return _attend(q, k, v, heads)
    rows = (tokens + blocks - 1) // blocks
    parts = [_attend(_rows(q, block * rows, rows), k, v, heads) for block in range(blocks)]
    while len(parts) > 1:
        parts = [_joined(parts[i : i + JOINED]) for i in range(0, len(parts), JOINED)]
    return _rows(Columns(parts[0], 0, q.width), 0, tokens).x


def _known(size: Any, most: int) -> int:
    return int(size) if isinstance(size, int | tirx.IntImm) else most


def _rows(part: Columns, start: Any, count: Any) -> Columns:
    """Rows ``start`` to ``start + count`` of some columns; past their end, the last one again."""

    def compute(x: te.Tensor) -> te.Tensor:
        last = x.shape[1] - 1
        shape = (1, count, part.width)
        return te.compute(shape, lambda b, i, n: x[b, tirx.min(start + i, last), part.first + n], name="query_rows")

    return Columns(op.tensor_expr_op(compute, "query_rows", [part.x]), 0, part.width)


def _joined(parts: list[Tensor]) -> Tensor:
    return op.concat(parts, dim=1) if len(parts) > 1 else parts[0]


def _attend(q: Columns, k: Columns, v: Columns, heads: int) -> Tensor:
    width, dtype = q.width, q.x.dtype
    head_dim = width // heads

    def scores(*given: te.Tensor) -> te.Tensor:
        # one tensor where queries and keys lie in the same
        queries, keys = _by_head(given[0], q.first, heads, head_dim), _by_head(given[-1], k.first, heads, head_dim)
        product = _product(queries, keys, "scores")
        scale = tirx.const(head_dim**-0.5, "float32")
        return te.compute(product.shape, lambda h, i, j: product[h, i, j] * scale, name="scaled")

    def mixed(weights: te.Tensor, x: te.Tensor) -> te.Tensor:
        values = te.compute(
            (heads, head_dim, x.shape[1]), lambda h, d, j: x[0, j, v.first + h * head_dim + d], name="values_by_channel"
        )
        product = _product(weights, values, "mixed")
        return te.compute(
            (1, weights.shape[1], width),
            lambda b, i, n: product[n // head_dim, i, n % head_dim].astype(dtype),
            name="joined",
        )

    operands = [q.x] if q.x is k.x else [q.x, k.x]
    weights = op.softmax(op.tensor_expr_op(scores, "attention_scores", operands), axis=-1).astype(dtype)
    return op.tensor_expr_op(mixed, "attention_mix", [weights, v.x])


def _by_head(x: te.Tensor, first: int, heads: int, head_dim: int) -> te.Tensor:
    """heads * head_dim columns of x (1, tokens, all columns), from ``first`` on, as (heads, tokens, head_dim)."""
    return te.compute((heads, x.shape[1], head_dim), lambda h, i, d: x[0, i, first + h * head_dim + d], name="by_head")


def _product(left: te.Tensor, right: te.Tensor, name: str) -> te.Tensor:
    """(heads, rows, k) times (heads, columns, k) to float32 (heads, rows, columns)."""
    k = te.reduce_axis((0, left.shape[2]), name="k")
    return te.compute(
        (left.shape[0], left.shape[1], right.shape[1]),
        lambda h, i, j: te.sum(left[h, i, k].astype("float32") * right[h, j, k].astype("float32"), axis=k),
        name=name,
    )
