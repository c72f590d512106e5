"""An online softmax in vectors: what a kernel keeps of some heads of queries while blocks of positions pass by.

Methods write statements into the kernel that is being built. The running maximum and sum are those of Milakov and
Gimelshein, arXiv:1805.02867. In which order keys and values are read is up to `paged_softmax` and `score_tiles`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.lane_reduction import Operation
from export.processor.vectors import Index

PAGE = 16
"""Positions of a page."""

BLOCK, WIDE = 64, 16
"""Positions that are scored before any of their values is added, and scores of a vector."""

LANES = 8
"""Numbers of a vector; a narrower processor takes several for it."""

LOWEST = -5e4
"""TVM's scores of positions that are not seen, and the log-sum-exp of none."""

Vectors = Callable[[Index, Index], tirx.Expr]
"""(position, number of the vector) to float32 vectors of keys or values."""


@dataclass(frozen=True)
class Heads:
    """Of queries and of keys, ``size`` wide; the numbers of the cache are of ``dtype``."""

    queries: int
    keys: int
    size: int
    dtype: str

    @property
    def group(self) -> int:
        """Heads of queries that share one of keys."""
        return self.queries // self.keys

    @property
    def item_bytes(self) -> int:
        return 2 if self.dtype == "float16" else 4

    @property
    def vectors(self) -> int:
        return self.size // LANES


def lanes(piece: Index) -> tirx.Expr:
    """The index of the vector ``piece`` of LANES numbers."""
    return T.ramp(piece * LANES, 1, LANES)


def wide(part: Index) -> tirx.Expr:
    """The index of the vector ``part`` of WIDE scores."""
    return T.ramp(part * WIDE, 1, WIDE)


def tree_reduce(parts: Sequence[tirx.Expr], operation: Operation) -> tirx.Expr:
    """Reduce in pairs, so that no chain of operations is longer than it must be."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [*(operation(parts[at], parts[at + half]) for at in range(half)), *parts[2 * half :]]
    return parts[0]


def exp2(x: tirx.Expr, width: int) -> tirx.Expr:
    """2^x in float32 for x up to 0, a vector of ``width`` or, for 1, a number; 2^-126 for what is below."""

    def every(value: tirx.Expr) -> tirx.Expr:
        return T.broadcast(value, width) if width > 1 else value

    kind = f"x{width}" if width > 1 else ""
    x = T.max(every(T.float32(-126)), x)
    whole = T.nearbyint(x)
    rest, value = x - whole, every(T.float32(math.log(2) ** 7 / math.factorial(7)))
    for order in reversed(range(7)):
        value = value * rest + every(T.float32(math.log(2) ** order / math.factorial(order)))
    exponent = T.shift_left(T.Cast(f"int32{kind}", whole) + every(T.int32(127)), every(T.int32(23)))
    return value * T.reinterpret(f"float32{kind}", exponent)


@dataclass(frozen=True)
class OnlineSoftmax:
    """What is kept of some heads of queries of one row; float32.

    Attributes:
        members: heads of queries.
        query: (members, size), scaled so that scores are exponents of two.
        total: (members, size), values times weights.
        state: (members, 2), the largest score and the sum of weights.
        scores: (members, BLOCK), of one block.
        several: (WIDE,), of a head's largest scores and of their sum.
        sums: (several, LANES), of scores and of the total while they are added up, in registers.
        change: (2,), the new largest score and what weights of the older one are multiplied with.
    """

    heads: Heads
    members: int
    query: tirx.Buffer
    total: tirx.Buffer
    state: tirx.Buffer
    scores: tirx.Buffer
    several: tirx.Buffer
    sums: tirx.Buffer
    change: tirx.Buffer

    def begin(self, read: Vectors, scale: tirx.Expr) -> None:
        """Write the state before the first block; ``read`` gives float32 numbers of (member, number of the vector)."""
        factor = T.broadcast(scale * T.float32(math.log2(math.e)), LANES)
        with T.serial(0, self.members) as member:
            T.buffer_store(self.state, T.float32(LOWEST), [member, 0])
            T.buffer_store(self.state, T.float32(1), [member, 1])
            for piece in range(self.heads.vectors):
                T.buffer_store(self.total, T.broadcast(T.float32(0), LANES), [member, lanes(piece)])
                T.buffer_store(self.query, read(member, piece) * factor, [member, lanes(piece)])

    def _score(self, member: Index, first: Index, there: Index, key: Vectors) -> None:
        """Write the scores of ``there`` positions of a block from ``first`` on, one position after the other."""
        with T.serial(0, there) as position:
            products = [self.query[member, lanes(piece)] * key(position, piece) for piece in range(self.heads.vectors)]
            chains = [sum(products[at + 2 :: 2], products[at]) for at in range(min(2, len(products)))]
            T.buffer_store(self.sums, tree_reduce(chains, operator.add), [0, lanes(0)])
            score = tree_reduce([self.sums[0, lane] for lane in range(LANES)], operator.add)
            T.buffer_store(self.scores, score, [member, first + position])

    def _largest(self, member: Index, parts: Index) -> tirx.Expr:
        """The largest score of a block."""
        T.buffer_store(self.several, self.scores[member, wide(0)], [wide(0)])
        with T.serial(0, parts - 1) as part:
            T.buffer_store(self.several, T.max(self.several[wide(0)], self.scores[member, wide(part + 1)]), [wide(0)])
        return tree_reduce([self.several[at] for at in range(WIDE)], T.max)

    def _weigh(self, member: Index, parts: Index) -> None:
        """Scores become weights of the largest so far."""
        T.buffer_store(self.change, T.max(self.state[member, 0], self._largest(member, parts)), [0])
        T.buffer_store(self.change, exp2(self.state[member, 0] - self.change[0], 1), [1])
        T.buffer_store(self.state, self.change[0], [member, 0])
        T.buffer_store(self.several, T.broadcast(T.float32(0), WIDE), [wide(0)])
        with T.serial(0, parts) as part:
            below = self.scores[member, wide(part)] - T.broadcast(self.change[0], WIDE)
            T.buffer_store(self.scores, exp2(below, WIDE), [member, wide(part)])
            T.buffer_store(self.several, self.several[wide(0)] + self.scores[member, wide(part)], [wide(0)])
        weights = tree_reduce([self.several[at] for at in range(WIDE)], operator.add)
        T.buffer_store(self.state, self.state[member, 1] * self.change[1] + weights, [member, 1])
        for piece in range(self.heads.vectors):
            older = self.total[member, lanes(piece)] * T.broadcast(self.change[1], LANES)
            T.buffer_store(self.total, older, [member, lanes(piece)])
