"""Horizontal sums of several vectors at once: each step halves how many vectors there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

Operation = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
"""A commutative operation of two vectors, or of two numbers."""


def reduce_lanes(vectors: Sequence[tirx.Expr], operation: Operation) -> tirx.Expr:
    """One vector whose lane i reduces the lanes of ``vectors[i]``; as many vectors as lanes, a power of two."""
    count = len(vectors)
    half = count // 2
    while half:
        vectors = [_reduce_pair(vectors[at], vectors[at + half], half, count, operation) for at in range(half)]
        half //= 2
    return vectors[0]


def _reduce_pair(one: tirx.Expr, other: tirx.Expr, half: int, count: int, operation: Operation) -> tirx.Expr:
    """Lanes in blocks of ``half``: those of ``one`` and ``other`` each reduced in pairs, side by side."""
    blocks = range(0, count, 2 * half)
    low = [first + at + side * count for first in blocks for side in (0, 1) for at in range(half)]
    high = [lane + half for lane in low]
    return operation(tirx.Shuffle([one, other], low), tirx.Shuffle([one, other], high))
