"""What lies in the lanes of several vectors joined into one vector: each fold halves how many vectors there are."""

# mypy: ignore-errors
from __future__ import annotations

from tvm import tirx


def folded(vectors, operation):
    """One vector whose lane i joins the lanes of ``vectors[i]``; as many vectors as lanes, a power of two."""
    count = len(vectors)
    half = count // 2
    while half:
        vectors = [fold(vectors[at], vectors[at + half], half, count, operation) for at in range(half)]
        half //= 2
    return vectors[0]


def fold(one, other, half, count, operation):
    """Lanes in blocks of ``half``: those of ``one`` and ``other`` each joined in pairs, side by side."""
    blocks = range(0, count, 2 * half)
    low = [first + at + side * count for first in blocks for side in (0, 1) for at in range(half)]
    high = [lane + half for lane in low]
    return operation(tirx.Shuffle([one, other], low), tirx.Shuffle([one, other], high))
