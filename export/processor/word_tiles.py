"""The online softmax of `register_tiles` in 16 bits: ``vpdpwssd`` adds two products of them to each lane, and exactly.

Queries, keys and values are rounded, each head of a token with a scale of its own, to as many bits as products leave room
for in sums of 32: 12.5 and a sign where a head has 64 channels. Weights are taken times the scales of values, and are
rounded with a scale for each row and block of positions, so that a position with a large weight and small values, as the
first one often is, leaves the others their bits. Sums of weights are in float32. A cache of bytes is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.lane_reduction import reduce_lanes
from export.processor.online_softmax import LANES, lanes
from export.processor.register_tiles import BLOCK, ROWS, WIDE, PromptSoftmax, full, wide
from export.processor.score_tiles import NONE, Side
from export.processor.token_panels import LEAST, word_dot
from export.processor.vectors import Index

VECTORS = BLOCK // WIDE
"""Of sums that each row has in registers at once."""

PAIR = 2
"""Numbers of 16 bits that are multiplied for a lane at once."""

LARGEST_BYTE, LARGEST_WORD = 128, 2**15 - 1

TO_WHOLE = 1.5 * 2.0**23
"""Added to a float32 of up to 22 bits, it leaves the nearest whole number in the lower ones."""


def largest_of(added: int, other: int = 0) -> int:
    """The largest number of 16 bits whose products with such numbers, or with ``other``, fit 32 bits, ``added`` of them."""
    room = (2**31 - 1) // added
    return min(LARGEST_WORD, room // other if other else math.isqrt(room))


@dataclass(frozen=True)
class WordSoftmax(PromptSoftmax):
    """What is kept, and what differs from `PromptSoftmax`; a word is a number of 16 bits, a pair two as an int32.

    Attributes:
        bytes_: the cache holds bytes, which are words without a scale.
        query: int16 (members, padded).
        query_scales: float32 (members,), so that scores are exponents of two.
        keys: int32 (padded to WIDE / 2, BLOCK), a pair of channels of each position.
        values: int32 (BLOCK / 2, padded to WIDE), a pair of positions of each channel.
        key_scales, value_scales: float32 (BLOCK,).
        words: int16 (LANES, padded to WIDE), of positions while they are rounded.
        sizes: uint32 (LANES, LANES), in registers: the bits of sizes, which are in the order of the sizes, NaN above all.
        factors: float32 (LANES,), what numbers of each position are multiplied with.
        turned: int32 (3, LANES, LANES), in registers, of pairs of channels of keys.
        weighing: int16 (ROWS, BLOCK), weights of one panel.
        tallest: uint32 (LANES, WIDE), in registers: the bits of the largest weight of each row and lane.
        steps: float32 (2, LANES), what weights of each row are rounded with, and what a word of them stands for.
        exact: of each row int32 (VECTORS, WIDE), in registers, which one buffer for all would be too large for.
    """

    bytes_: bool
    query_scales: tirx.Buffer
    key_scales: tirx.Buffer
    value_scales: tirx.Buffer
    words: tirx.Buffer
    sizes: tirx.Buffer
    factors: tirx.Buffer
    weighing: tirx.Buffer
    tallest: tirx.Buffer
    steps: tirx.Buffer
    exact: Sequence[tirx.Buffer]

    @property
    def channels(self) -> int:
        """That are read of a head."""
        return self.vectors * LANES

    @property
    def largest_query(self) -> int:
        return largest_of(self.channels, LARGEST_BYTE if self.bytes_ else 0)

    @property
    def largest_weight(self) -> int:
        return largest_of(BLOCK, LARGEST_BYTE if self.bytes_ else 0)

    def begin(self, member: Index, query: Callable[[int], tirx.Expr], scale: float) -> None:
        T.buffer_store(self.largest, T.float32(NONE), [member // ROWS, member % ROWS])
        T.buffer_store(self.summed, T.float32(0), [member // ROWS, member % ROWS])
        for piece in range(int(self.total.shape[1]) // WIDE):
            T.buffer_store(self.total, T.broadcast(T.float32(0), WIDE), [member, wide(piece)])
        self._size(0, query)
        vector, half = self.sizes[0, lanes(0)], LANES // 2
        while half:
            vector = T.max(*(tirx.Shuffle([vector], [*range(first, first + half)]) for first in (0, half)))
            half //= 2
        T.buffer_store(self.factors, at_least(vector, 1), [0])
        share = T.float32(scale * math.log2(math.e) / self.largest_query)
        T.buffer_store(self.query_scales, self.factors[0] * share, [member])
        T.buffer_store(self.factors, T.float32(self.largest_query) / self.factors[0], [0])
        for piece in range(self.vectors):
            T.buffer_store(self.query, words(query(piece), self.factors[0], LANES), [member, lanes(piece)])

    def unpack(self, there: tirx.Expr, keys: Side, values: Side) -> None:
        most = largest_of(self.channels), largest_of(BLOCK)
        with T.serial(0, (there + LANES - 1) // LANES) as eight:
            keys.prefetch(eight)
            values.prefetch(eight)
            self._round(eight, there, keys, self.key_scales, most[0])
            for piece in range(int(self.words.shape[1]) // WIDE):
                for at in range(LANES):
                    vector = T.reinterpret(f"int32x{LANES}", self.words[at, wide(piece)])
                    T.buffer_store(self.turned, vector, [0, at, lanes(0)])
                for pair, positions in enumerate(self.transposed()):
                    T.buffer_store(self.keys, positions, [piece * LANES + pair, lanes(eight)])
            self._round(eight, there, values, self.value_scales, most[1])
            for pair in range(LANES // PAIR):
                for piece in range(int(self.values.shape[1]) // WIDE):
                    both = [self.words[pair * PAIR + side, wide(piece)] for side in range(PAIR)]
                    order = [lane + side * WIDE for lane in range(WIDE) for side in range(PAIR)]
                    vector = T.reinterpret(f"int32x{WIDE}", tirx.Shuffle(both, order))
                    T.buffer_store(self.values, vector, [eight * (LANES // PAIR) + pair, wide(piece)])

    def _size(self, at: int, read: Callable[[int], tirx.Expr]) -> None:
        """Write the bits of the largest sizes of a position's numbers by lane."""
        mask = T.broadcast(T.uint32(0x7FFFFFFF), LANES)
        for piece in range(self.vectors):
            bits = T.bitwise_and(T.reinterpret(f"uint32x{LANES}", read(piece)), mask)
            T.buffer_store(self.sizes, T.max(self.sizes[at, lanes(0)], bits) if piece else bits, [at, lanes(0)])

    def _round(self, eight: tirx.Expr, there: tirx.Expr, side: Side, scales: tirx.Buffer, most: int) -> None:
        """Write the words and the scales of eight positions."""

        # those behind the last one are not looked at
        def read(at: int) -> Callable[[int], tirx.Expr]:
            return lambda piece: side.read(T.min(eight * LANES + at, there - 1), piece)

        if self.bytes_:
            T.buffer_store(scales, T.broadcast(T.float32(1), LANES), [lanes(eight)])
        else:
            for at in range(LANES):
                self._size(at, read(at))
            bits = reduce_lanes([self.sizes[at, lanes(0)] for at in range(LANES)], T.max)
            T.buffer_store(self.factors, at_least(bits), [lanes(0)])
            share = T.broadcast(T.float32(1 / most), LANES)
            T.buffer_store(scales, self.factors[lanes(0)] * share, [lanes(eight)])
            T.buffer_store(self.factors, T.broadcast(T.float32(most), LANES) / self.factors[lanes(0)], [lanes(0)])
        for at in range(LANES):
            for piece in range(self.vectors):
                factor = T.float32(1) if self.bytes_ else self.factors[at]
                T.buffer_store(self.words, words(read(at)(piece), factor, LANES), [at, lanes(piece)])

    def _add(self, panel: tirx.Expr, rows: int) -> None:
        most, parts = self.limits[ROWS], self.limits[ROWS + 1]
        for count in range(1, VECTORS + 1):
            with T.If(parts == count), T.Then():
                self._score_all(panel, count, rows)
        with T.If(self.limits[0] < parts * WIDE), T.Then(), T.serial(0, parts) as part:
            self._mask(part, rows)
        self._weigh(panel, parts, rows)
        self._round_weights(parts, rows)
        pieces = int(self.total.shape[1]) // WIDE
        for first in range(0, pieces, VECTORS):
            self._add_words(panel, first, min(VECTORS, pieces - first), (most + 1) // PAIR, rows)

    def _multiply(
        self, many: Index, rows: int, vectors: int, vector: Callable[..., tirx.Expr], pair: Callable[..., tirx.Expr]
    ) -> None:
        """``exact``: ``many`` pairs of each row, each times ``vectors`` vectors."""
        for row in range(rows):
            for at in range(vectors):
                T.buffer_store(self.exact[row], T.broadcast(T.int32(0), WIDE), [at, full()])
        with T.serial(0, many) as two:
            for row in range(rows):
                spread = T.broadcast(T.reinterpret("int32", pair(row, T.ramp(two * PAIR, 1, PAIR))), WIDE)
                for at in range(vectors):
                    total = word_dot(self.exact[row][at, full()], vector(two, at), spread)
                    T.buffer_store(self.exact[row], total, [at, full()])

    def _score_all(self, panel: tirx.Expr, count: int, rows: int) -> None:
        """Scores of the first ``count`` vectors of positions."""
        self._multiply(
            self.channels // PAIR,
            rows,
            count,
            lambda two, at: self.keys[two, wide(at)],
            lambda row, two: self.query[panel * ROWS + row, two],
        )
        for row in range(rows):
            for at in range(count):
                scale = T.broadcast(self.query_scales[panel * ROWS + row], WIDE) * self.key_scales[wide(at)]
                score = T.Cast(f"float32x{WIDE}", self.exact[row][at, full()]) * scale
                T.buffer_store(self.scores, score, [row, wide(at)])

    def _round_weights(self, parts: tirx.Expr, rows: int) -> None:
        """Weights times the scales of values become words."""
        for row in range(LANES):
            T.buffer_store(self.tallest, T.broadcast(T.uint32(0), WIDE), [row, full()])
        with T.serial(0, parts) as part:
            for row in range(rows):
                weights, none = self.scores[row, wide(part)], T.broadcast(T.float32(0), WIDE)
                # what is not seen may be infinite
                shares = T.Select(weights == none, none, weights * self.value_scales[wide(part)])
                T.buffer_store(self.scores, shares, [row, wide(part)])
                bits = T.reinterpret(f"uint32x{WIDE}", self.scores[row, wide(part)])
                T.buffer_store(self.tallest, T.max(self.tallest[row, full()], bits), [row, full()])
        T.buffer_store(self.steps, at_least(self.across(self.tallest, T.max)), [1, lanes(0)])
        most = T.broadcast(T.float32(self.largest_weight), LANES)
        T.buffer_store(self.steps, most / self.steps[1, lanes(0)], [0, lanes(0)])
        share = T.broadcast(T.float32(1 / self.largest_weight), LANES)
        T.buffer_store(self.steps, self.steps[1, lanes(0)] * share, [1, lanes(0)])
        with T.serial(0, parts) as part:
            for row in range(rows):
                rounded = words(self.scores[row, wide(part)], self.steps[0, row], WIDE)
                T.buffer_store(self.weighing, rounded, [row, wide(part)])

    def _add_words(self, panel: tirx.Expr, first: int, count: int, many: tirx.Expr, rows: int) -> None:
        """Values of ``count`` vectors of channels."""
        self._multiply(
            many,
            rows,
            count,
            lambda two, at: self.values[two, wide(first + at)],
            lambda row, two: self.weighing[row, two],
        )
        for row in range(rows):
            for at in range(count):
                place = [panel * ROWS + row, wide(first + at)]
                older = self.total[tuple(place)] * T.broadcast(self.change[row], WIDE)
                sums = T.Cast(f"float32x{WIDE}", self.exact[row][at, full()]) * T.broadcast(self.steps[1, row], WIDE)
                T.buffer_store(self.total, sums + older, place)


def at_least(sizes: tirx.Expr, many: int = LANES) -> tirx.Expr:
    """float32 of bits of sizes, LEAST for less, so that they can be divided by; NaN stays."""
    kind = f"float32x{many}" if many > 1 else "float32"
    least = T.reinterpret("uint32", T.float32(LEAST))
    return T.reinterpret(kind, T.max(sizes, T.broadcast(least, many) if many > 1 else least))


def words(numbers: tirx.Expr, factor: tirx.Expr, many: int) -> tirx.Expr:
    """int16: the nearest whole numbers of ``numbers`` times the factor, which fit."""
    return T.Cast(f"int16x{many}", whole(numbers, factor, many))


def whole(numbers: tirx.Expr, factor: tirx.Expr, many: int) -> tirx.Expr:
    """int32 whose 16 lower bits are the nearest whole numbers of ``numbers`` times the factor."""
    spread = T.broadcast(factor, many)
    return T.reinterpret(f"int32x{many}", numbers * spread + T.broadcast(T.float32(TO_WHOLE), many))


def word_softmax(members: int, group: int, size: int, padded: int, cache: str) -> WordSoftmax:
    """Its buffers, in the block that is being written; ``padded`` channels are whole vectors of LANES."""
    panels, channels = -(-members // ROWS), -(-padded // WIDE) * WIDE
    rows = panels * ROWS
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "query": ("int16", (rows, padded)),
        "total": ("float32", (rows, channels)),
        "largest": ("float32", (panels, LANES)),
        "summed": ("float32", (panels, LANES)),
        "keys": ("int32", (channels // PAIR, BLOCK)),
        "values": ("int32", (BLOCK // PAIR, channels)),
        "scores": ("float32", (ROWS, BLOCK)),
        "sums": ("float32", (1, WIDE)),
        "tops": ("float32", (LANES, WIDE)),
        "turned": ("int32", (3, LANES, LANES)),
        "change": ("float32", (LANES,)),
        "limits": ("int32", (ROWS + 2,)),
        "query_scales": ("float32", (rows,)),
        "key_scales": ("float32", (BLOCK,)),
        "value_scales": ("float32", (BLOCK,)),
        "words": ("int16", (LANES, channels)),
        "sizes": ("uint32", (LANES, LANES)),
        "factors": ("float32", (LANES,)),
        "weighing": ("int16", (ROWS, BLOCK)),
        "tallest": ("uint32", (LANES, WIDE)),
        "steps": ("float32", (2, LANES)),
    }
    buffers = {name: T.sblock_alloc_buffer(shape, kind) for name, (kind, shape) in shapes.items()}
    exact = [T.sblock_alloc_buffer((VECTORS, WIDE), "int32") for _ in range(ROWS)]
    return WordSoftmax(exact=exact, group=group, size=size, bytes_=cache == "int8", **buffers)
