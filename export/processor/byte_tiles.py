"""The online softmax of `score_tiles` over a cache of bytes, which ``vpdpbusd`` multiplies as they lie, and exactly.

A query, which has the scales of keys in it, becomes two bytes for each channel, with one scale for all of them. A weight
becomes two of a scale that a block of positions shares: the largest weight of a block has all bits, whatever other blocks
have. The first position of a text often has most of the weight and hardly a value (Xiao et al., arXiv:2309.17453), so it is
in no block. Sums of weights are in float32.

Keys are made unsigned as they are read; what that adds to a score is the same for all positions. Values are multiplied
as they lie, four positions at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.byte_chunks import CHUNK, QUAD, chunk_of, dot, interleaved, none
from export.processor.lane_reduction import reduce_lanes
from export.processor.online_softmax import LANES, WIDE, Heads, OnlineSoftmax, Vectors, exp2, lanes, tree_reduce, wide
from export.processor.score_tiles import NONE, TILE, Side, add_blocks
from export.processor.vectors import Index, span
from export.processor.word_tiles import at_least, whole

BLOCK = 256
"""Positions that are scored before any of their values is added: between the two, numbers wait for each other."""

AT_ONCE = 64
"""Channels whose sums of values stay in registers."""

HELD = 5
"""Heads of queries that share one of keys, from which on its values are put in order once for all of them."""

WIDEST = 256
"""Channels of a head, whose loops are written out; products of 512 with a query still fit 32 bits."""

PARTS, BITS = 2, 8
"""Bytes of a query's number, or of a weight, the high one first, and bits of one."""

HALF = 1 << BITS - 1
"""Makes a signed byte an unsigned one."""

LARGEST_QUERY, LARGEST_WEIGHT = (HALF - 1 << BITS) + HALF - 1, (1 << PARTS * BITS) - 1
"""Of two signed bytes, and of two unsigned ones."""


def fits(size: int) -> bool:
    """Whether ``size`` channels of a head are whole chunks, and not too many."""
    return size % CHUNK == 0 and size <= WIDEST


@dataclass(frozen=True)
class ByteSoftmax(OnlineSoftmax):
    """The state of the queries that share one head of keys; `Side.read` gives int8 chunks of a position.

    Attributes:
        bytes_: int8 (PARTS, members, size), of the query.
        query_scales: float32 (members,), so that scores are exponents of two.
        started: int32 (PARTS, members, LANES), minus what `HALF` adds to a score.
        scored: int32 (PARTS, TILE, LANES), in registers.
        weights: uint8 (PARTS, members, BLOCK + WIDE), of one block.
        shares: float32 (members, 2), what the sums so far and those of one block are multiplied with.
        held: int8 (BLOCK / QUAD + 2, QUAD * AT_ONCE), values of a block in fours, where `HELD` members share them.
        added: int32 (PARTS, AT_ONCE / LANES, LANES), in registers, values times weights of one block.
    """

    bytes_: tirx.Buffer
    query_scales: tirx.Buffer
    started: tirx.Buffer
    scored: tirx.Buffer
    weights: tirx.Buffer
    shares: tirx.Buffer
    held: tirx.Buffer
    added: tirx.Buffer

    def begin(self, read: Vectors, scale: tirx.Expr) -> None:
        super().begin(read, scale)
        with T.serial(0, self.members) as member:
            self._scale(member)
            for piece in range(self.heads.size // WIDE):
                bits = whole(self.query[member, wide(piece)], self.change[1], WIDE)
                high = T.shift_right(bits + T.broadcast(T.int32(HALF), WIDE), T.broadcast(T.int32(BITS), WIDE))
                self._store(self.bytes_, "int8", high, bits, member, piece)
            for part in range(PARTS):
                total = none()
                for chunk in range(self.heads.size // CHUNK):
                    half = T.broadcast(T.uint8(HALF), CHUNK)
                    total = dot(total, half, self.bytes_[part, member, chunk_of(chunk)])
                T.buffer_store(self.started, none() - total, [part, member, lanes(0)])

    def _scale(self, member: Index) -> None:
        """Write the scale of a query, and what makes its largest number the largest one of two bytes."""
        sizes = T.broadcast(T.uint32(0), WIDE)
        for piece in range(self.heads.size // WIDE):
            bits = T.reinterpret(f"uint32x{WIDE}", self.query[member, wide(piece)])
            # bits of sizes are in the order of the sizes, NaN above all
            sizes = T.max(sizes, T.bitwise_and(bits, T.broadcast(T.uint32(0x7FFFFFFF), WIDE)))
        T.buffer_store(self.several, T.reinterpret(f"float32x{WIDE}", sizes), [wide(0)])
        largest = tree_reduce([T.reinterpret("uint32", self.several[at]) for at in range(WIDE)], T.max)
        T.buffer_store(self.change, at_least(largest, 1), [0])
        T.buffer_store(self.query_scales, self.change[0] * T.float32(1 / LARGEST_QUERY), [member])
        T.buffer_store(self.change, T.float32(LARGEST_QUERY) / self.change[0], [1])

    def _store(self, target: tirx.Buffer, kind: str, high: tirx.Expr, low: tirx.Expr, member: Index, piece: Index) -> None:
        for part, byte in enumerate((high, low)):
            T.buffer_store(target, T.Cast(f"{kind}x{WIDE}", byte), [part, member, wide(piece)])

    def add_all(self, seen: tirx.Expr, keys: Side, values: Side) -> None:
        """Write the first position, and blocks of those behind it."""
        with T.serial(0, self.members) as member:
            self._begin_with(member, keys, values)
        with T.If(seen > 1), T.Then():
            add_blocks(seen - 1, BLOCK, lambda first, there: self._add(1 + first, there, keys, values))

    def _begin_with(self, member: Index, keys: Side, values: Side) -> None:
        """The first position is all there is: its weight is one, in float32, and so are its values."""
        self._score_tile(member, 0, lambda _, chunk: keys.read(0, chunk))
        T.buffer_store(self.state, self.scores[member, 0], [member, 0])
        for chunk in range(self.heads.size // CHUNK):
            value = T.Cast(f"float32x{CHUNK}", values.read(0, chunk))
            T.buffer_store(self.total, value, [member, chunk_of(chunk)])

    def _add(self, first: Index, there: Index, keys: Side, values: Side) -> None:
        """Write one block: ``there`` positions from ``first`` on."""
        parts = (there + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(NONE), WIDE), [member, wide(parts - 1)])
        self._score_all(first, there, keys)
        with T.serial(0, self.members) as member:
            self._weigh_block(member, parts)
        for begin in range(0, self.heads.size, AT_ONCE):
            self._add_values(range(begin, min(begin + AT_ONCE, self.heads.size)), first, there, values)

    def _score_all(self, first: Index, there: Index, keys: Side) -> None:
        """Write scores; the last tile takes some positions again that the one before it took."""
        with T.If(there >= TILE):
            with T.Then(), T.serial(0, (there + TILE - 1) // TILE) as tile:
                begin = T.min(tile * TILE, there - TILE)
                keys.prefetch(first + begin)
                with T.serial(0, self.members) as member:
                    self._score_tile(member, begin, lambda at, chunk: keys.read(first + begin + at, chunk))
            with T.Else():
                keys.prefetch(first)
                with T.serial(0, self.members) as member:
                    self._score_tile(member, 0, lambda at, chunk: keys.read(first + T.min(at, there - 1), chunk))
                    with T.serial(there, TILE) as behind:
                        T.buffer_store(self.scores, T.float32(NONE), [member, behind])

    def _score_tile(self, member: Index, first: Index, key: Vectors) -> None:
        """Write scores of a tile whose first position is the block's number ``first``."""
        sign = T.broadcast(T.uint8(HALF), CHUNK)
        # one position after the other, sums would wait for themselves
        for chunk in range(self.heads.size // CHUNK):
            for at in range(TILE):
                unsigned = T.bitwise_xor(T.reinterpret(f"uint8x{CHUNK}", key(at, chunk)), sign)
                for part in range(PARTS):
                    older = self.scored[part, at, lanes(0)] if chunk else self.started[part, member, lanes(0)]
                    total = dot(older, unsigned, self.bytes_[part, member, chunk_of(chunk)])
                    T.buffer_store(self.scored, total, [part, at, lanes(0)])
        for at in range(TILE):
            high = T.shift_left(self.scored[0, at, lanes(0)], T.broadcast(T.int32(BITS), LANES))
            T.buffer_store(self.scored, high + self.scored[1, at, lanes(0)], [0, at, lanes(0)])
        total = reduce_lanes([self.scored[0, at, lanes(0)] for at in range(TILE)], operator.add)
        score = T.Cast(f"float32x{LANES}", total) * T.broadcast(self.query_scales[member], LANES)
        T.buffer_store(self.scores, score, [member, span(first, TILE)])

    def _weigh_block(self, member: Index, parts: Index) -> None:
        """Scores become bytes of weights, of which the block's largest is one, and its share of all sums is told."""
        T.buffer_store(self.change, self._largest(member, parts), [0])
        T.buffer_store(self.several, T.broadcast(T.float32(0), WIDE), [wide(0)])
        with T.serial(0, parts) as part:
            weights = exp2(self.scores[member, wide(part)] - T.broadcast(self.change[0], WIDE), WIDE)
            T.buffer_store(self.scores, weights, [member, wide(part)])
            T.buffer_store(self.several, self.several[wide(0)] + self.scores[member, wide(part)], [wide(0)])
            bits = whole(self.scores[member, wide(part)], T.float32(LARGEST_WEIGHT), WIDE)
            high = T.shift_right(bits, T.broadcast(T.int32(BITS), WIDE))
            self._store(self.weights, "uint8", high, bits, member, part)
        T.buffer_store(self.change, T.max(self.state[member, 0], self.change[0]), [1])
        for side, largest in enumerate((self.state[member, 0], self.change[0])):
            T.buffer_store(self.shares, exp2(largest - self.change[1], 1), [member, side])
        T.buffer_store(self.state, self.change[1], [member, 0])
        weights = tree_reduce([self.several[at] for at in range(WIDE)], operator.add)
        summed = self.state[member, 1] * self.shares[member, 0] + weights * self.shares[member, 1]
        T.buffer_store(self.state, summed, [member, 1])

    def _add_values(self, channels: range, first: Index, there: Index, values: Side) -> None:
        """``total``: some channels of the block's values times their weights."""

        def read(number: Index, chunk: int, last: Index | None = None) -> list[tirx.Expr]:
            each = [number * QUAD + at if last is None else T.min(number * QUAD + at, last) for at in range(QUAD)]
            return interleaved([values.read(first + at, channels.start // CHUNK + chunk) for at in each])

        def each_quad(write: Callable[[Index, Callable[[int], list[tirx.Expr]]], None], asks: bool) -> None:
            with T.serial(0, there // TILE) as tile:
                if asks:
                    values.prefetch(first + tile * TILE)
                for at in range(TILE // QUAD):
                    number = tile * (TILE // QUAD) + at
                    write(number, partial(read, number))
            with T.serial(there // TILE * (TILE // QUAD), (there + QUAD - 1) // QUAD) as number:
                # what lies behind the last position is no number of the cache, and has no weight
                write(number, partial(read, number, last=there - 1))

        asks = channels.start == 0
        if self.members >= HELD:
            each_quad(partial(self._hold, channels), asks)
        with T.serial(0, self.members) as member:
            for place in self._places(channels):
                T.buffer_store(self.added, none(), place)
            if self.members < HELD:
                each_quad(partial(self._add_quad, channels, member), asks)
            else:
                with T.serial(0, (there + QUAD - 1) // QUAD) as number:
                    self._add_quad(channels, member, number, partial(self._held, number))
            self._add_block(channels, member)

    def _places(self, channels: range) -> Iterator[list[Index]]:
        for part in range(PARTS):
            for at in range(len(channels) // LANES):
                yield [part, at, lanes(0)]

    def _hold(self, channels: range, number: Index, read: Callable[[int], list[tirx.Expr]]) -> None:
        """Keep the values of four positions as several heads of queries multiply them."""
        for chunk in range(len(channels) // CHUNK):
            for vector, values in enumerate(read(chunk)):
                T.buffer_store(self.held, values, [number, chunk_of(chunk * QUAD + vector)])

    def _held(self, number: Index, chunk: int) -> list[tirx.Expr]:
        return [self.held[number, chunk_of(chunk * QUAD + vector)] for vector in range(QUAD)]

    def _add_quad(self, channels: range, member: Index, number: Index, read: Callable[[int], list[tirx.Expr]]) -> None:
        """``added``: the values of four positions times their weights."""
        for chunk in range(len(channels) // CHUNK):
            for vector, values in enumerate(read(chunk)):
                for part in range(PARTS):
                    four = T.reinterpret("int32", self.weights[part, member, T.ramp(number * QUAD, 1, QUAD)])
                    weights = T.reinterpret(f"uint8x{CHUNK}", T.broadcast(four, LANES))
                    place = [part, chunk * QUAD + vector, lanes(0)]
                    T.buffer_store(self.added, dot(self.added[tuple(place)], weights, values), place)

    def _add_block(self, channels: range, member: Index) -> None:
        older, newer = (self.shares[member, side] for side in range(2))
        for piece in range(len(channels) // LANES):
            sums = []
            for part in range(PARTS):
                halves = [self._half(part, piece * LANES + at) for at in (0, LANES // 2)]
                size = (1 << BITS * (PARTS - 1 - part)) / LARGEST_WEIGHT
                factor = T.broadcast(newer * T.float32(size), LANES)
                sums.append(T.Cast(f"float32x{LANES}", tirx.Shuffle(halves, [*range(LANES)])) * factor)
            place = [member, lanes(channels.start // LANES + piece)]
            total = self.total[tuple(place)] * T.broadcast(older, LANES) + (sums[0] + sums[1])
            T.buffer_store(self.total, total, place)

    def _half(self, part: int, channel: int) -> tirx.Expr:
        """Half a vector of ``added``, from a channel on, where `interleaved` left it."""
        chunk, within = divmod(channel, CHUNK)
        upper, within = divmod(within, CHUNK // 2)
        return self.added[part, chunk * QUAD + within // (LANES // 2), span(upper * (LANES // 2), LANES // 2)]

    def weighted_values(self, member: Index, first: int, many: int) -> tirx.Expr:
        """The sum of values times weights in ``many`` channels of a member from ``first`` on."""
        return self.total[member, span(first, many)]


def byte_softmax(members: int, size: int) -> ByteSoftmax:
    """Its buffers, in the block that is being written; ``size`` channels `fits`."""
    row, several = (members, size), (members, BLOCK + WIDE)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "query": ("float32", row),
        "total": ("float32", row),
        "state": ("float32", (members, 2)),
        "scores": ("float32", several),
        "several": ("float32", (WIDE,)),
        "sums": ("float32", (1, LANES)),
        "change": ("float32", (2,)),
        "bytes_": ("int8", (PARTS, *row)),
        "query_scales": ("float32", (members,)),
        "started": ("int32", (PARTS, members, LANES)),
        "scored": ("int32", (PARTS, TILE, LANES)),
        "weights": ("uint8", (PARTS, *several)),
        "shares": ("float32", (members, 2)),
        "held": ("int8", (BLOCK // QUAD + TILE // QUAD, QUAD * AT_ONCE) if members >= HELD else (1, CHUNK)),
        "added": ("int32", (PARTS, AT_ONCE // LANES, LANES)),
    }
    buffers = {name: T.sblock_alloc_buffer(shape, kind) for name, (kind, shape) in shapes.items()}
    return ByteSoftmax(Heads(members, 1, size, "int8"), members, **buffers)
