"""An online softmax over a flat cache, position by position, in tiles of eight positions.

A product of a query with a key ends in a vector whose lanes have to be added up. For one position that is as much work as
the products themselves; of the positions of a tile the vectors are reduced together (`lane_reduction`), until one vector
holds a score in each lane. Memory is asked ahead for what the same side, keys or values, reads a few tiles
later, at the end of a head for the beginning of the next one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.lane_reduction import reduce_lanes
from export.processor.online_softmax import LANES, WIDE, Heads, OnlineSoftmax, Vectors, lanes
from export.processor.vectors import Index, span

BLOCK = 64
"""Positions that are scored before any of their values is added."""

TILE = LANES
"""Positions of a tile, so that their scores are a vector."""

SUMS, OWN = 16, 4
"""Vectors that are summed up at once, so that none waits for itself, and the least of them that a head of queries has."""

NONE = -3e38
"""The score of a position that is not there."""


Ask = Callable[[Index], None]
"""Writes what asks memory for what lies ahead of a position."""


@dataclass(frozen=True)
class Side:
    """Keys or values of one head of one row.

    Attributes:
        read: float32 vectors of a position (number of the vector).
        prefetch: writes what asks memory for a tile some way behind this position.
    """

    read: Vectors
    prefetch: Ask


@dataclass(frozen=True)
class TileSoftmax(OnlineSoftmax):
    """The state of the queries that share one head of keys.

    Attributes:
        at_once: vectors that are summed up at once.
    """

    at_once: int

    def add_all(self, seen: tirx.Expr, keys: Side, values: Side) -> None:
        """Write all blocks of ``seen`` positions."""
        add_blocks(seen, BLOCK, lambda first, there: self.add(first, there, keys, values))

    def add(self, first: Index, there: Index, keys: Side, values: Side) -> None:
        """Write one block: ``there`` positions from ``first`` on."""
        parts = (there + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(NONE), WIDE), [member, T.ramp((parts - 1) * WIDE, 1, WIDE)])
        self._score_all(there, *self._from(first, keys))
        with T.serial(0, self.members) as member:
            self._weigh(member, parts)
        self._add_values(there, *self._from(first, values))

    def _from(self, first: Index, side: Side) -> tuple[Vectors, Ask]:
        """What is read of a block's positions, and what asks for memory there."""
        return lambda at, piece: side.read(first + at, piece), lambda at: side.prefetch(first + at)

    def _shared(self) -> list[range]:
        """Heads of queries that what is read is widened once for, as many at a time as have `OWN` sums each."""
        count = -(-self.members // (self.at_once // OWN))
        bounds = [number * self.members // count for number in range(count + 1)]
        return [range(*two) for two in itertools.pairwise(bounds)]

    def _score_all(self, there: Index, key: Vectors, prefetch: Ask) -> None:
        """Write scores; the last tile takes some positions again that the one before it took."""
        with T.If(there >= TILE):
            with T.Then(), T.serial(0, (there + TILE - 1) // TILE) as tile:
                first = T.min(tile * TILE, there - TILE)
                prefetch(first)
                for members in self._shared():
                    many = TILE if len(members) * TILE <= self.at_once else TILE // 2
                    with T.serial(0, TILE // many) as part:
                        self._score_some(members, first + part * many, many, key)
            with T.Else(), T.serial(0, self.members) as member:
                self._score(member, 0, there, key)

    def _score_some(self, members: range, first: Index, many: int, key: Vectors) -> None:
        """Write scores of ``many`` positions from ``first`` on by each member."""
        # one position after the other, sums would wait for themselves
        for piece in range(self.heads.vectors):
            for at in range(many):
                vector = key(first + at, piece)
                for number, member in enumerate(members):
                    product, place = self.query[member, lanes(piece)] * vector, number * many + at
                    sums = product if piece == 0 else self.sums[place, lanes(0)] + product
                    T.buffer_store(self.sums, sums, [place, lanes(0)])
        count = len(members) * many
        for begin in range(0, count, TILE):
            # where there are too few the last is taken several times
            chosen = [min(begin + at, count - 1) for at in range(TILE)]
            scores = reduce_lanes([self.sums[at, lanes(0)] for at in chosen], operator.add)
            for start in range(begin, min(begin + TILE, count), many):
                own = tirx.Shuffle([scores], [*range(start - begin, start - begin + many)]) if many < TILE else scores
                T.buffer_store(self.scores, own, [members[start // many], T.ramp(first, 1, many)])

    def _add_values(self, there: Index, value: Vectors, prefetch: Ask) -> None:
        for members in self._shared():
            together = -(-self.at_once // len(members))
            for begin in range(0, self.heads.vectors, together):
                pieces = range(begin, min(begin + together, self.heads.vectors))
                kept = [(place, *each) for place, each in enumerate(itertools.product(pieces, members))]
                for place, piece, member in kept:
                    T.buffer_store(self.sums, self.total[member, lanes(piece)], [place, lanes(0)])
                with T.serial(0, (there + TILE - 1) // TILE) as tile:
                    if begin == members.start == 0:
                        prefetch(tile * TILE)
                    with T.serial(0, T.min(TILE, there - tile * TILE)) as at:
                        position = tile * TILE + at
                        for place, piece, member in kept:
                            weight = T.broadcast(self.scores[member, position], LANES)
                            added = self.sums[place, lanes(0)] + weight * value(position, piece)
                            T.buffer_store(self.sums, added, [place, lanes(0)])
                for place, piece, member in kept:
                    T.buffer_store(self.total, self.sums[place, lanes(0)], [member, lanes(piece)])

    def weighted_values(self, member: Index, first: int, many: int) -> tirx.Expr:
        """The sum of values times weights in ``many`` channels of a member from ``first`` on."""
        return self.total[member, span(first, many)]

    def begin(self, read: Vectors, scale: tirx.Expr) -> None:
        """As of any online softmax, but that no score is too small."""
        super().begin(read, scale)
        with T.serial(0, self.members) as member:
            T.buffer_store(self.state, T.float32(NONE), [member, 0])


def add_blocks(seen: tirx.Expr, size: int, add: Callable[[Index, Index], None]) -> None:
    """``add`` (first, there) writes each block of ``size`` positions; the last has a tile or more, so it may be larger."""
    blocks = T.max(1, (seen + size - TILE) // size)
    with T.serial(0, blocks) as block:
        add(block * size, T.if_then_else(block == blocks - 1, seen - block * size, size))


def tile_softmax(members: int, size: int, shared_sums: int) -> TileSoftmax:
    """Its buffers, in the block that is being written.

    Args:
        size: channels, whole vectors.
        shared_sums: vectors that are summed up at once where there are several members, at most `SUMS`.
    """
    row, sums = (members, size), SUMS + SUMS // OWN
    sizes = row, row, (members, 2), (members, BLOCK + WIDE), (WIDE,), (sums, LANES), (2,)
    query, total, state, scores, several, added, change = (T.sblock_alloc_buffer(shape, "float32") for shape in sizes)
    at_once = SUMS if members == 1 else shared_sums
    heads = Heads(members, 1, size, "float32")
    return TileSoftmax(heads, members, query, total, state, scores, several, added, change, at_once)
