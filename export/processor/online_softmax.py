"""An online softmax in vectors, as the attention of a processor takes blocks of positions (`processor_attention`).

Methods write statements into the kernel that is being built. The running maximum and sum are those of Milakov and
Gimelshein, arXiv:1805.02867.
"""

# mypy: ignore-errors
from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

PAGE = 16
"""Positions of a page."""

BLOCK, WIDE = 64, 16
"""Positions that are scored before any of their values is added, and scores of a vector."""

LANES = 8
"""Numbers of a vector; a narrower processor takes several for it."""

AT_ONCE = 8
"""Vectors of sums that stay in registers."""

LOWEST = -5e4
"""TVM's scores of positions that are not seen, and the log-sum-exp of none."""


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


def lanes(piece):
    return T.ramp(piece * LANES, 1, LANES)


def wide(part):
    return T.ramp(part * WIDE, 1, WIDE)


def joined(parts, operation):
    """Pairs first, so that no chain is longer than it must be."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [operation(parts[at], parts[at + half]) for at in range(half)] + parts[2 * half :]
    return parts[0]


def power_of_two(x, width):
    """2^x in float32 for x up to 0, a vector of ``width`` or, for 1, a number; below 2^-126 that."""
    every = (lambda value: T.broadcast(value, width)) if width > 1 else (lambda value: value)
    kind = f"x{width}" if width > 1 else ""
    x = T.max(every(T.float32(-126)), x)
    whole = T.nearbyint(x)
    rest, value = x - whole, every(T.float32(math.log(2) ** 7 / math.factorial(7)))
    for order in reversed(range(7)):
        value = value * rest + every(T.float32(math.log(2) ** order / math.factorial(order)))
    exponent = T.shift_left(T.Cast(f"int32{kind}", whole) + every(T.int32(127)), every(T.int32(23)))
    return value * T.reinterpret(f"float32{kind}", exponent)


@dataclass(frozen=True)
class Softmax:
    """What is kept of some heads of one row while blocks of positions pass by; float32.

    Attributes:
        members: heads of queries.
        query: (members, size), scaled so that scores are exponents of two.
        total: (members, size), values times weights.
        state: (members, 2), the largest score and the sum of weights.
        scores: (members, BLOCK), of one block.
        unpacked: (PAGE, size), keys or values that several heads of queries read.
        several: (WIDE,), of a head's largest scores and of their sum.
        sums: (AT_ONCE, LANES), of the total while values are added.
        change: (2,), the new largest score and what weights of the older one are multiplied with.
    """

    heads: Heads
    members: int
    query: tirx.Buffer
    total: tirx.Buffer
    state: tirx.Buffer
    scores: tirx.Buffer
    unpacked: tirx.Buffer
    several: tirx.Buffer
    sums: tirx.Buffer
    change: tirx.Buffer

    def begin(self, read, scale):
        """Write the state before the first block; ``read`` gives float32 numbers of (member, number of the vector)."""
        factor = T.broadcast(scale * T.float32(math.log2(math.e)), LANES)
        with T.serial(0, self.members) as member:
            T.buffer_store(self.state, T.float32(LOWEST), [member, 0])
            T.buffer_store(self.state, T.float32(1), [member, 1])
            for piece in range(self.heads.vectors):
                T.buffer_store(self.total, T.broadcast(T.float32(0), LANES), [member, lanes(piece)])
                T.buffer_store(self.query, read(member, piece) * factor, [member, lanes(piece)])

    def add(self, seen, key, value):
        """Write one block of ``seen`` positions.

        Args:
            key: float32 numbers of a key, by (part of PAGE positions, head, position of the part, number of the vector).
            value: the same of a value.
        """
        parts = (seen + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(LOWEST), WIDE), [member, wide(parts - 1)])
        self._each(seen, key, self._score)
        with T.serial(0, self.members) as member:
            self._weigh(member, parts)
        self._each(seen, value, self._add_values)

    def _each(self, seen, read, work):
        """Write ``work`` for every part and every member, in the order in which they lie in memory."""
        heads = self.heads
        with T.serial(0, (seen + PAGE - 1) // PAGE) as part:
            there = T.min(PAGE, seen - part * PAGE)
            with T.serial(0, self.members // heads.group) as head:
                if heads.group == 1:
                    work(head, part, there, lambda position, piece: read(part, head, position, piece))
                    return
                with T.serial(0, there) as position:
                    for piece in range(heads.vectors):
                        T.buffer_store(self.unpacked, read(part, head, position, piece), [position, lanes(piece)])
                with T.serial(0, heads.group) as member:
                    unpacked = lambda position, piece: self.unpacked[position, lanes(piece)]  # noqa: E731
                    work(head * heads.group + member, part, there, unpacked)

    def _score(self, member, part, there, key):
        with T.serial(0, there) as position:
            products = [self.query[member, lanes(piece)] * key(position, piece) for piece in range(self.heads.vectors)]
            chains = [sum(products[at + 2 :: 2], products[at]) for at in range(min(2, len(products)))]
            T.buffer_store(self.sums, joined(chains, lambda a, b: a + b), [0, lanes(0)])
            score = joined([self.sums[0, lane] for lane in range(LANES)], lambda a, b: a + b)
            T.buffer_store(self.scores, score, [member, part * PAGE + position])

    def _weigh(self, member, parts):
        """Scores become weights of the largest so far."""
        T.buffer_store(self.several, self.scores[member, wide(0)], [wide(0)])
        with T.serial(0, parts - 1) as part:
            T.buffer_store(self.several, T.max(self.several[wide(0)], self.scores[member, wide(part + 1)]), [wide(0)])
        largest = joined([self.several[at] for at in range(WIDE)], T.max)
        T.buffer_store(self.change, T.max(self.state[member, 0], largest), [0])
        T.buffer_store(self.change, power_of_two(self.state[member, 0] - self.change[0], 1), [1])
        T.buffer_store(self.state, self.change[0], [member, 0])
        T.buffer_store(self.several, T.broadcast(T.float32(0), WIDE), [wide(0)])
        with T.serial(0, parts) as part:
            below = self.scores[member, wide(part)] - T.broadcast(self.change[0], WIDE)
            T.buffer_store(self.scores, power_of_two(below, WIDE), [member, wide(part)])
            T.buffer_store(self.several, self.several[wide(0)] + self.scores[member, wide(part)], [wide(0)])
        weights = joined([self.several[at] for at in range(WIDE)], lambda a, b: a + b)
        T.buffer_store(self.state, self.state[member, 1] * self.change[1] + weights, [member, 1])
        for piece in range(self.heads.vectors):
            older = self.total[member, lanes(piece)] * T.broadcast(self.change[1], LANES)
            T.buffer_store(self.total, older, [member, lanes(piece)])

    def _add_values(self, member, part, there, value):
        for first in range(0, self.heads.vectors, AT_ONCE):
            pieces = range(first, min(first + AT_ONCE, self.heads.vectors))
            for at, piece in enumerate(pieces):
                T.buffer_store(self.sums, self.total[member, lanes(piece)], [at, lanes(0)])
            with T.serial(0, there) as position:
                weight = T.broadcast(self.scores[member, part * PAGE + position], LANES)
                for at, piece in enumerate(pieces):
                    T.buffer_store(self.sums, self.sums[at, lanes(0)] + weight * value(position, piece), [at, lanes(0)])
            for at, piece in enumerate(pieces):
                T.buffer_store(self.total, self.sums[at, lanes(0)], [member, lanes(piece)])

    def end(self, row, first, output, lse):
        """Write the row's output (row, head, size) and base-2 log-sum-exp (row, head) from the head ``first`` on."""
        with T.serial(0, self.members) as member:
            for piece in range(self.heads.vectors):
                share = self.total[member, lanes(piece)] / T.broadcast(self.state[member, 1], LANES)
                T.buffer_store(output, T.Cast(f"{self.heads.dtype}x{LANES}", share), [row, first + member, lanes(piece)])
            T.buffer_store(lse, self.state[member, 0] + T.log2(self.state[member, 1]), [row, first + member])


def softmax(heads, most, together):
    """Its buffers, in the block that is being written, of ``together`` heads of keys, at most ``most``."""
    rows = most * heads.group
    row = rows, heads.size
    sizes = row, row, (rows, 2), (rows, BLOCK), (PAGE, heads.size), (WIDE,), (AT_ONCE, LANES), (2,)
    return Softmax(heads, together * heads.group, *(T.sblock_alloc_buffer(size, "float32") for size in sizes))
