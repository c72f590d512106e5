"""An online softmax whose products are those of matrices: some rows of queries by one vector of positions or channels.

ROWS x WIDE sums stay in registers while channels, or positions, pass by: for each, one vector is read, and one number of
every row, which multiplies all of it. 16 registers of 8 numbers hold that, as do 32 of 4 or of 16. Keys are turned when they
are widened, so that a vector holds positions and scores come side by side.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.lane_reduction import Operation, reduce_lanes
from export.processor.online_softmax import LANES, exp2, lanes
from export.processor.score_tiles import NONE, Side
from export.processor.vectors import Index, span

ROWS = 6
"""Rows of queries whose sums are in registers together, a panel."""

FEW = 2
"""Rows of a panel that is not full and takes less time, as of a token or two."""

WIDE = 16
"""Numbers of a vector of sums."""

BLOCK = 64
"""Positions that are scored before any of their values is added."""

CHANNELS = 32
"""Of a score, that are added up at once."""

LOWEST = -126.0
"""Weights below two to the power of this are none."""


@dataclass(frozen=True)
class PromptSoftmax:
    """What is kept of the members, token by token the queries of a group, while blocks of positions pass by; float32.

    Attributes:
        group: members of one token.
        size: channels of a key.
        query: (members, padded), scaled so that scores are exponents of two.
        total: (members, padded to WIDE), values times weights.
        largest, summed: (panels, LANES), the largest score and the sum of weights of each row of a panel.
        keys: (BLOCK / WIDE, padded, WIDE), a vector holds positions.
        values: (padded / WIDE, BLOCK, WIDE), a vector holds channels.
        scores: (ROWS, BLOCK) of one panel.
        sums: (ROWS, WIDE), in registers.
        tops: (LANES, WIDE), in registers: the largest score or the sum of weights of each row and lane.
        turned: (3, LANES, LANES), in registers, of keys while they are turned.
        change: (LANES,), what older weights of each row are multiplied with.
        limits: int32 (ROWS + 2,), how many positions of the block each row sees, the most, and how many vectors these are.
    """

    group: int
    size: int
    query: tirx.Buffer
    total: tirx.Buffer
    largest: tirx.Buffer
    summed: tirx.Buffer
    keys: tirx.Buffer
    values: tirx.Buffer
    scores: tirx.Buffer
    sums: tirx.Buffer
    tops: tirx.Buffer
    turned: tirx.Buffer
    change: tirx.Buffer
    limits: tirx.Buffer

    @property
    def vectors(self) -> int:
        """Of LANES channels that are read."""
        return int(self.query.shape[1]) // LANES

    def begin(self, member: Index, query: Callable[[int], tirx.Expr], scale: float) -> None:
        """Write the state of a member before the first block; ``query`` gives float32 by the number of the vector."""
        factor = T.broadcast(T.float32(scale * math.log2(math.e)), LANES)
        T.buffer_store(self.largest, T.float32(NONE), [member // ROWS, member % ROWS])
        T.buffer_store(self.summed, T.float32(0), [member // ROWS, member % ROWS])
        for piece in range(self.vectors):
            T.buffer_store(self.query, query(piece) * factor, [member, lanes(piece)])
        for piece in range(int(self.total.shape[1]) // LANES):
            T.buffer_store(self.total, T.broadcast(T.float32(0), LANES), [member, lanes(piece)])

    def weights(self, member: Index) -> tirx.Expr:
        """The sum of a member's weights."""
        return self.summed[member // ROWS, member % ROWS]

    def weighted_values(self, member: Index, first: int, many: int) -> tirx.Expr:
        """The sum of values times weights in ``many`` channels of a member from ``first`` on."""
        return self.total[member, span(first, many)]

    def unpack(self, there: tirx.Expr, keys: Side, values: Side) -> None:
        """Write one block of ``there`` positions; what follows is asked for by LANES positions."""
        with T.serial(0, (there + LANES - 1) // LANES) as eight:
            keys.prefetch(eight)
            values.prefetch(eight)
            with T.serial(0, self.vectors) as piece:
                for at in range(LANES):
                    # those behind the last one are not looked at
                    vector = keys.read(T.min(eight * LANES + at, there - 1), piece)
                    T.buffer_store(self.turned, vector, [0, at, lanes(0)])
                place = T.ramp(eight % (WIDE // LANES) * LANES, 1, LANES)
                for channel, positions in enumerate(self.transposed()):
                    T.buffer_store(self.keys, positions, [eight // (WIDE // LANES), piece * LANES + channel, place])
        with T.serial(0, there) as position:
            for piece in range(self.vectors):
                place = T.ramp(piece * LANES % WIDE, 1, LANES)
                T.buffer_store(self.values, values.read(position, piece), [piece * LANES // WIDE, position, place])

    def transposed(self) -> Iterator[tirx.Expr]:
        """The columns of the eight rows by eight that lie in ``turned``."""
        for stage, (step, low) in enumerate(((1, [0, 8, 1, 9, 4, 12, 5, 13]), (2, [0, 1, 8, 9, 4, 5, 12, 13]))):
            high = [lane + 2 for lane in low]
            for pair in range(LANES // 2):
                first = pair // step * 2 * step + pair % step
                both = [self.turned[stage, first + side, lanes(0)] for side in (0, step)]
                # of rows or pairs of them, columns that are next to one another
                for side, order in enumerate((low, high)):
                    at = first // (2 * step) * 2 * step + 2 * (pair % step) + side
                    T.buffer_store(self.turned, tirx.Shuffle(both, order), [stage + 1, at, lanes(0)])
        half = LANES // 2
        for column in range(LANES):
            both = [self.turned[2, column % half + side, lanes(0)] for side in (0, half)]
            yield tirx.Shuffle(both, [at * LANES + column // half * half + lane for at in range(2) for lane in range(half)])

    def add(self, panel: tirx.Expr, seen: tirx.Expr, tokens: tirx.Expr) -> None:
        """Write a panel's share of the block that is unpacked.

        Args:
            seen: positions of the block that the first of ``tokens`` sees, any number of them before or behind it.
        """
        most = self.limits[ROWS]
        for row in range(ROWS):
            token = T.min((panel * ROWS + row) // self.group, tokens - 1)
            T.buffer_store(self.limits, T.max(0, T.min(BLOCK, seen + token)), [row])
        T.buffer_store(self.limits, self.limits[ROWS - 1], [ROWS])
        T.buffer_store(self.limits, (most + WIDE - 1) // WIDE, [ROWS + 1])
        with T.If(most > 0), T.Then():
            few = tokens * self.group - panel * ROWS <= FEW
            with T.If(few):
                with T.Then():
                    self._add(panel, FEW)
                with T.Else():
                    self._add(panel, ROWS)

    def _add(self, panel: tirx.Expr, rows: int) -> None:
        most, parts = self.limits[ROWS], self.limits[ROWS + 1]
        with T.serial(0, parts) as part:
            self._score(panel, part, rows)
        with T.If(self.limits[0] < parts * WIDE), T.Then(), T.serial(0, parts) as part:
            self._mask(part, rows)
        self._weigh(panel, parts, rows)
        with T.serial(0, int(self.total.shape[1]) // WIDE) as piece:
            self._add_values(panel, piece, most, rows)

    def _score(self, panel: tirx.Expr, part: tirx.Expr, rows: int) -> None:
        # short sums of sums are closer to the true ones than long sums
        for first in range(0, self.size, CHANNELS):
            for row in range(rows):
                T.buffer_store(self.sums, T.broadcast(T.float32(0), WIDE), [row, full()])
            with T.serial(first, min(first + CHANNELS, self.size)) as channel:
                key = self.keys[part, channel, full()]
                for row in range(rows):
                    query = T.broadcast(self.query[panel * ROWS + row, channel], WIDE)
                    T.buffer_store(self.sums, self.sums[row, full()] + query * key, [row, full()])
            for row in range(rows):
                sums = self.sums[row, full()] + self.scores[row, wide(part)] if first else self.sums[row, full()]
                T.buffer_store(self.scores, sums, [row, wide(part)])

    def _mask(self, part: tirx.Expr, rows: int) -> None:
        position = T.ramp(part * WIDE, 1, WIDE)
        for row in range(rows):
            seen = position < T.broadcast(self.limits[row], WIDE)
            score = T.Select(seen, self.scores[row, wide(part)], T.broadcast(T.float32(NONE), WIDE))
            T.buffer_store(self.scores, score, [row, wide(part)])

    def _weigh(self, panel: tirx.Expr, parts: tirx.Expr, rows: int) -> None:
        """Scores become weights of the largest so far."""
        for row in range(LANES):
            T.buffer_store(self.tops, T.broadcast(T.float32(NONE), WIDE), [row, full()])
        with T.serial(0, parts) as part:
            for row in range(rows):
                T.buffer_store(self.tops, T.max(self.tops[row, full()], self.scores[row, wide(part)]), [row, full()])
        T.buffer_store(self.change, self.largest[panel, lanes(0)], [lanes(0)])
        T.buffer_store(self.largest, T.max(self.change[lanes(0)], self.across(self.tops, T.max)), [panel, lanes(0)])
        below = self.change[lanes(0)] - self.largest[panel, lanes(0)]
        T.buffer_store(self.change, exp2(below, LANES), [lanes(0)])
        for row in range(LANES):
            T.buffer_store(self.tops, T.broadcast(T.float32(0), WIDE), [row, full()])
        with T.serial(0, parts) as part:
            for row in range(rows):
                below = self.scores[row, wide(part)] - T.broadcast(self.largest[panel, row], WIDE)
                none = below < T.broadcast(T.float32(LOWEST), WIDE)
                weights = T.Select(none, T.broadcast(T.float32(0), WIDE), exp2(below, WIDE))
                T.buffer_store(self.scores, weights, [row, wide(part)])
                T.buffer_store(self.tops, self.tops[row, full()] + self.scores[row, wide(part)], [row, full()])
        summed = self.summed[panel, lanes(0)] * self.change[lanes(0)] + self.across(self.tops, operator.add)
        T.buffer_store(self.summed, summed, [panel, lanes(0)])

    def across(self, vectors: tirx.Buffer, operation: Operation) -> tirx.Expr:
        """One vector: each row's numbers in ``vectors`` (LANES, WIDE), reduced."""
        halves = [
            [tirx.Shuffle([vectors[row, full()]], list(range(at, at + LANES))) for at in (0, LANES)] for row in range(LANES)
        ]
        return reduce_lanes([operation(*pair) for pair in halves], operation)

    def _add_values(self, panel: tirx.Expr, piece: tirx.Expr, most: tirx.Expr, rows: int) -> None:
        for row in range(rows):
            T.buffer_store(self.sums, T.broadcast(T.float32(0), WIDE), [row, full()])
        with T.serial(0, most) as position:
            value = self.values[piece, position, full()]
            for row in range(rows):
                weight = T.broadcast(self.scores[row, position], WIDE)
                T.buffer_store(self.sums, self.sums[row, full()] + weight * value, [row, full()])
        for row in range(rows):
            at = [panel * ROWS + row, wide(piece)]
            older = self.total[tuple(at)] * T.broadcast(self.change[row], WIDE)
            T.buffer_store(self.total, self.sums[row, full()] + older, at)


def full() -> tirx.Expr:
    return T.ramp(0, 1, WIDE)


def wide(part: Index) -> tirx.Expr:
    return T.ramp(part * WIDE, 1, WIDE)


def prompt_softmax(members: int, group: int, size: int, padded: int) -> PromptSoftmax:
    """Its buffers, in the block that is being written; ``padded`` channels are whole vectors of LANES."""
    panels, channels = -(-members // ROWS), -(-padded // WIDE)
    rows = panels * ROWS
    shapes: list[tuple[int, ...]] = [(rows, padded), (rows, channels * WIDE), (panels, LANES), (panels, LANES)]
    shapes += [(BLOCK // WIDE, padded, WIDE), (channels, BLOCK, WIDE), (ROWS, BLOCK)]
    shapes += [(ROWS, WIDE), (LANES, WIDE), (3, LANES, LANES), (LANES,)]
    buffers = [T.sblock_alloc_buffer(shape, "float32") for shape in shapes]
    buffers.append(T.sblock_alloc_buffer((ROWS + 2,), "int32"))
    return PromptSoftmax(group, size, *buffers)
