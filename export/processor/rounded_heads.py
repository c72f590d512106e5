"""Queries, keys and values of a tower's attention as it multiplies them: 12 bits, with a scale for each head of a token.

Values have a scale for each channel of a panel. Where positions are rotary, queries and keys turn before they are rounded,
and are read by those pairs of channels that turn together: a score adds products of pairs, in whatever order.
"""

# mypy: ignore-errors
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import tree_reduce
from export.processor.token_panels import (
    LANES,
    LEAST,
    PANEL,
    VECTORS,
    at,
    every,
    got,
    kept,
    nearest,
    put,
    registers,
    spread,
)
from export.processor.vectors import Index

MOST = 2047
"""Of a rounded query, key or value."""

WIDEST = 512
"""Channels of a head, whose products of two rounded numbers fit 32 bits."""


@dataclass(frozen=True)
class PanelHeads:
    """``heads`` of ``size`` channels, queries, keys and values side by side, scores times ``scale``.

    Attributes:
        turned: positions turn queries and keys, a channel and the one half a head away together.
    """

    heads: int
    size: int
    scale: float
    turned: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.size


def unsupported(heads: PanelHeads) -> str:
    """Why no kernel is written; empty where one is."""
    return (
        f"heads of {heads.size} channels: an even number up to {WIDEST} is expected"
        if heads.size % 2 or heads.size > WIDEST
        else ""
    )


@dataclass(frozen=True)
class RoundedHeads:
    """What all panels are read from.

    Attributes:
        queries, keys: int32 (panels, heads, size / 2, PANEL), two channels of a token each: neighbours, or where heads are
            turned those that turn together.
        values: int16 (panels, heads, size, PANEL).
        query_scales, key_scales: float32 (panels, heads, PANEL).
        value_scales: float32 (panels, heads, size).
    """

    heads: PanelHeads
    queries: tirx.Buffer
    keys: tirx.Buffer
    values: tirx.Buffer
    query_scales: tirx.Buffer
    key_scales: tirx.Buffer
    value_scales: tirx.Buffer

    @staticmethod
    def of(heads: PanelHeads, panels: tirx.Expr) -> RoundedHeads:
        size, each = heads.size, (panels, heads.heads)
        shapes = [((size // 2, PANEL), "int32")] * 2 + [((size, PANEL), "int16")]
        shapes += [((PANEL,), "float32")] * 2 + [((size,), "float32")]
        return RoundedHeads(heads, *(T.sblock_alloc_buffer((*each, *shape), kind) for shape, kind in shapes))

    def write(
        self, qkv: tirx.Buffer, turns: tirx.Buffer | None, panel: tirx.Expr, head: tirx.Expr, tokens: tirx.Expr
    ) -> None:
        size, width = self.heads.size, self.heads.width
        scale = self.heads.scale * math.log2(math.e)
        sides = ((self.queries, self.query_scales, scale), (self.keys, self.key_scales, 1.0))
        for number, (pairs, scales, factor) in enumerate(sides):
            read = partial(self._read, qkv, panel, number * width + head * size)
            if turns is None:
                first = again = partial(self._neighbours, read)
            else:
                turned = T.sblock_alloc_buffer((size, PANEL), "float32")
                first = partial(self._turn, read, partial(self._read, turns, panel, 0), turned)
                again = partial(self._halves, lambda channel, vector, turned=turned: turned[channel, at(vector)])
            self._write_pairs(first, again, pairs, scales, factor, (panel, head))
        there = T.Cast("int32", tokens - panel * PANEL)
        with T.serial(0, size) as channel:
            vectors = []
            for vector in range(VECTORS):
                # those behind the last token would make the others' steps longer
                seen = T.ramp(T.int32(vector * LANES), 1, LANES) < spread(there)
                value = self._read(qkv, panel, 2 * width + head * size, channel, vector)
                vectors.append(kept(T.Select(seen, value, every(0.0))))
            self._write_values(vectors, panel, head, channel)

    @staticmethod
    def _read(qkv: tirx.Buffer, panel: Index, begin: Index, channel: Index, vector: int) -> tirx.Expr:
        return qkv[panel, begin + channel, at(vector)]

    @staticmethod
    def _neighbours(read: Callable, number: Index, vector: int) -> tuple[tirx.Expr, tirx.Expr]:
        return read(2 * number, vector), read(2 * number + 1, vector)

    def _halves(self, read: Callable, number: Index, vector: int) -> tuple[tirx.Expr, tirx.Expr]:
        """Channels that turn together."""
        return read(number, vector), read(number + self.heads.size // 2, vector)

    def _turn(
        self, read: Callable, angles: Callable, turned: tirx.Buffer, number: Index, vector: int
    ) -> tuple[tirx.Expr, tirx.Expr]:
        """Two channels, turned, in memory too."""
        (one, other), (cosine, sine) = (self._halves(each, number, vector) for each in (read, angles))
        T.buffer_store(turned, one * cosine - other * sine, [number, at(vector)])
        T.buffer_store(turned, other * cosine + one * sine, [number + self.heads.size // 2, at(vector)])
        return self._halves(lambda channel, vector: turned[channel, at(vector)], number, vector)

    def _write_pairs(
        self, first: Callable, again: Callable, pairs: tirx.Buffer, scales: tirx.Buffer, factor: float, place: tuple
    ) -> None:
        """Two by two: ``first`` gives channels of a number and a vector, and ``again`` once it gave those of all."""
        largest, half = registers("float32", VECTORS), self.heads.size // 2
        for vector in range(VECTORS):
            put(largest, every(LEAST), vector)
        with T.serial(0, half) as number:
            for vector in range(VECTORS):
                longer = T.max(*map(magnitude, first(number, vector)))
                put(largest, T.max(got(largest, vector), longer), vector)
        for vector in range(VECTORS):
            # what a step stands for; then what numbers are multiplied with
            T.buffer_store(scales, got(largest, vector) * every(factor / MOST), [*place, at(vector)])
            put(largest, every(MOST) / got(largest, vector), vector)
        with T.serial(0, half) as number:
            for vector in range(VECTORS):
                both = [nearest(channel * got(largest, vector)) for channel in again(number, vector)]
                T.buffer_store(pairs, paired(*both), [*place, number, at(vector)])

    def _write_values(self, vectors: list[tirx.Expr], panel: Index, head: Index, channel: Index) -> None:
        """A channel of all tokens of a panel."""
        lanes, factor = registers("float32"), T.sblock_alloc_buffer((2,), "float32")
        put(lanes, tree_reduce([magnitude(vector) for vector in vectors], T.max))
        T.buffer_store(factor, T.max(T.float32(LEAST), tree_reduce([lanes[lane] for lane in range(LANES)], T.max)), [0])
        T.buffer_store(factor, T.float32(MOST) / factor[0], [1])
        T.buffer_store(self.value_scales, factor[0] * T.float32(1 / MOST), [panel, head, channel])
        for number, vector in enumerate(vectors):
            rounded = T.Cast(f"int16x{LANES}", nearest(vector * spread(factor[1])))
            T.buffer_store(self.values, rounded, [panel, head, channel, at(number)])


def magnitude(x: tirx.Expr) -> tirx.Expr:
    return T.max(x, -x)


def paired(low: tirx.Expr, high: tirx.Expr) -> tirx.Expr:
    """int32 numbers of 16 bits as pairs of them."""
    return T.bitwise_or(T.bitwise_and(low, spread(T.int32(0xFFFF))), T.shift_left(high, spread(T.int32(16))))
