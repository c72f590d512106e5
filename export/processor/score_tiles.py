"""An online softmax over a flat cache, position by position, in tiles of eight positions.

A product of a query with a key ends in a vector whose lanes have to be added up. For one position that is as much work as
the products themselves; of the positions of a tile the vectors are reduced together (`lane_reduction`), until one vector
holds a score in each lane. Memory is asked ahead for what the same side, keys or values, reads a few tiles
later, at the end of a head for the beginning of the next one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.lane_reduction import reduce_lanes
from export.processor.online_softmax import AT_ONCE, LANES, WIDE, Heads, OnlineSoftmax, Vectors, lanes
from export.processor.vectors import Index, span

BLOCK, PAGE = 64, 16
"""Positions that are scored before any of their values is added, and those that are unpacked for several queries."""

TILE = LANES
"""Positions of a tile, so that their scores are a vector."""

NONE = -3e38
"""The score of a position that is not there."""


@dataclass(frozen=True)
class Side:
    """Keys or values of one head of one row.

    Attributes:
        read: float32 vectors of a position (number of the vector).
        prefetch: writes what asks memory for a tile some way behind this position.
    """

    read: Vectors
    prefetch: Callable[[Index], None]


Work = Callable[[Index, Index, Index, Vectors, Callable[[Index], None]], None]
"""Writes what is done for (member, first position of the block, positions, vectors of a position, asking for memory)."""


class TileSoftmax(OnlineSoftmax):
    """The state of the queries that share one head of keys."""

    def add_all(self, seen: tirx.Expr, keys: Side, values: Side) -> None:
        """Write all blocks of ``seen`` positions, the last of which has a tile or more."""
        blocks = T.max(1, (seen + BLOCK - TILE) // BLOCK)
        with T.serial(0, blocks) as block:
            self.add(block * BLOCK, T.if_then_else(block == blocks - 1, seen - block * BLOCK, BLOCK), keys, values)

    def add(self, first: Index, there: Index, keys: Side, values: Side) -> None:
        """Write one block: ``there`` positions from ``first`` on."""
        parts = (there + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(NONE), WIDE), [member, T.ramp((parts - 1) * WIDE, 1, WIDE)])
        self._tiles(first, there, keys, self._score_cached if self.members == 1 else self._score_unpacked)
        with T.serial(0, self.members) as member:
            self._weigh(member, parts)
        self._tiles(first, there, values, self._add_values)

    def _tiles(self, first: Index, there: Index, side: Side, work: Work) -> None:
        if self.members == 1:
            work(0, 0, there, lambda at, piece: side.read(first + at, piece), lambda at: side.prefetch(first + at))
            return
        with T.serial(0, (there + PAGE - 1) // PAGE) as part:
            begin = part * PAGE
            here = T.min(PAGE, there - begin)
            for tile in range(PAGE // TILE):
                side.prefetch(first + begin + tile * TILE)
            with T.serial(0, here) as at:
                for piece in range(self.heads.vectors):
                    T.buffer_store(self.unpacked, side.read(first + begin + at, piece), [at, lanes(piece)])
            with T.serial(0, self.members) as member:
                work(member, begin, here, lambda at, piece: self.unpacked[at, lanes(piece)], lambda _: None)

    def _score_cached(
        self, member: Index, begin: Index, there: Index, key: Vectors, prefetch: Callable[[Index], None]
    ) -> None:
        """Write scores of positions that lie in the cache; the last tile takes some again that the one before it took."""
        with T.If(there >= TILE):
            with T.Then(), T.serial(0, (there + TILE - 1) // TILE) as tile:
                first = T.min(tile * TILE, there - TILE)
                prefetch(first)
                self._score_tile(member, begin + first, lambda at, piece: key(first + at, piece))
            with T.Else():
                self._score(member, 0, there, key)

    def _score_unpacked(self, member: Index, begin: Index, there: Index, key: Vectors, _: Callable[[Index], None]) -> None:
        """Write scores of positions that are unpacked; a tile may reach behind them."""
        with T.serial(0, (there + TILE - 1) // TILE) as tile:
            self._score_tile(member, begin + tile * TILE, lambda at, piece: key(tile * TILE + at, piece))
        with T.serial(0, -there % TILE) as behind:
            T.buffer_store(self.scores, T.float32(NONE), [member, begin + there + behind])

    def _score_tile(self, member: Index, first: Index, key: Vectors) -> None:
        # one position after the other, sums would wait for themselves
        for piece in range(self.heads.vectors):
            query = self.query[member, lanes(piece)]
            for at in range(TILE):
                product = query * key(at, piece)
                sums = product if piece == 0 else self.sums[at, lanes(0)] + product
                T.buffer_store(self.sums, sums, [at, lanes(0)])
        scores = reduce_lanes([self.sums[at, lanes(0)] for at in range(TILE)], operator.add)
        T.buffer_store(self.scores, scores, [member, T.ramp(first, 1, TILE)])

    def _add_values(
        self, member: Index, begin: Index, there: Index, value: Vectors, prefetch: Callable[[Index], None]
    ) -> None:
        for first in range(0, self.heads.vectors, AT_ONCE):
            pieces = range(first, min(first + AT_ONCE, self.heads.vectors))
            for at, piece in enumerate(pieces):
                T.buffer_store(self.sums, self.total[member, lanes(piece)], [at, lanes(0)])
            with T.serial(0, (there + TILE - 1) // TILE) as tile:
                if first == 0:
                    prefetch(tile * TILE)
                with T.serial(0, T.min(TILE, there - tile * TILE)) as position:
                    weight = T.broadcast(self.scores[member, begin + tile * TILE + position], LANES)
                    for at, piece in enumerate(pieces):
                        added = self.sums[at, lanes(0)] + weight * value(tile * TILE + position, piece)
                        T.buffer_store(self.sums, added, [at, lanes(0)])
            for at, piece in enumerate(pieces):
                T.buffer_store(self.total, self.sums[at, lanes(0)], [member, lanes(piece)])

    def weighted_values(self, member: Index, first: int, many: int) -> tirx.Expr:
        """The sum of values times weights in ``many`` channels of a member from ``first`` on."""
        return self.total[member, span(first, many)]

    def begin(self, read: Vectors, scale: tirx.Expr) -> None:
        """As of any online softmax, but that no score is too small."""
        super().begin(read, scale)
        with T.serial(0, self.members) as member:
            T.buffer_store(self.state, T.float32(NONE), [member, 0])


def tile_softmax(members: int, size: int) -> TileSoftmax:
    """Its buffers, in the block that is being written; ``size`` channels are whole vectors."""
    row = members, size
    sizes = row, row, (members, 2), (members, BLOCK + WIDE), (PAGE, size), (WIDE,), (AT_ONCE, LANES), (2,)
    heads = Heads(members, 1, size, "float32")
    return TileSoftmax(heads, members, *(T.sblock_alloc_buffer(shape, "float32") for shape in sizes))
