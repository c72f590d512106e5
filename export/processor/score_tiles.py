"""Scores of a tile of positions at once: one vector of sums a position, then the sums of lanes of all of them together.

A product of a query with a key ends in a vector whose lanes have to be added up. For one position that is as much work as
the products themselves; of `TILE` positions the vectors are folded in pairs, each fold halving how many there are, until
one vector holds a score in each lane.
"""

# mypy: ignore-errors
from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import BLOCK, LANES, PAGE, Softmax, lanes, softmax

__all__ = ["BLOCK", "PAGE", "TILE", "TiledSoftmax", "tiled_softmax"]

TILE = LANES
"""Positions of a tile, so that their scores are a vector."""


class TiledSoftmax(Softmax):
    """An online softmax that scores tiles of positions."""

    def _score(self, member, part, there, key):
        with T.serial(0, there // TILE) as tile:
            self._store(member, part, tile, lambda at: tile * TILE + at, key)
        with T.If(there % TILE > 0), T.Then():
            tile = there // TILE
            # positions that are not there are the last one again, and their scores are those of none
            self._store(member, part, tile, lambda at: T.min(tile * TILE + at, there - 1), key)
            with T.serial(0, TILE - there % TILE) as behind:
                T.buffer_store(self.scores, T.float32(-5e4), [member, part * PAGE + there + behind])

    def _store(self, member, part, tile, position, key):
        sums = [None] * TILE
        for piece in range(self.heads.vectors):
            query = self.query[member, lanes(piece)]
            for at in range(TILE):
                product = query * key(position(at), piece)
                sums[at] = product if piece == 0 else sums[at] + product
        T.buffer_store(self.scores, folded(sums), [member, T.ramp(part * PAGE + tile * TILE, 1, TILE)])


def folded(vectors):
    """One vector whose lane i is the sum of the lanes of ``vectors[i]``; as many vectors as lanes, a power of two."""
    count = len(vectors)
    half = count // 2
    while half:
        pairs = [(vectors[at], vectors[at + half]) for at in range(half)]
        vectors = [fold(one, other, half, count) for one, other in pairs]
        half //= 2
    return vectors[0]


def fold(one, other, half, count):
    """Lanes in blocks of ``half``: those of ``one`` and ``other`` each added in pairs, side by side."""
    blocks = range(0, count, 2 * half)
    low = [first + at + side * count for first in blocks for side in (0, 1) for at in range(half)]
    high = [lane + half for lane in low]
    return tirx.Shuffle([one, other], low) + tirx.Shuffle([one, other], high)


def tiled_softmax(heads):
    """Its buffers, in the block that is being written, for one head of keys."""
    made = softmax(heads, 1, 1)
    return TiledSoftmax(**{name: getattr(made, name) for name in made.__dataclass_fields__})
