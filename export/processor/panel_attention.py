"""Attention among the tokens of a picture, in panels: every token sees every other, and no score outlives its panel.

Queries, keys and values are rounded to 12 bits, a scale for each head of a token (of values, for each channel of a panel),
and multiplied with the processor's products of 16-bit numbers, which are twice as many in a time as float32's and summed
exactly; weights of the softmax are 13 bits of the largest so far. The running maximum and sum are those of Milakov and
Gimelshein, arXiv:1805.02867. A vector holds `LANES` queries: scores, weights and sums of values go lane by lane.
"""

# mypy: ignore-errors
from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import exp2
from export.processor.rounded_heads import PanelHeads, RoundedHeads, paired, unsupported
from export.processor.token_panels import (
    LANES,
    NUMBER,
    PANEL,
    TILE,
    VECTORS,
    as_float,
    at,
    block,
    every,
    got,
    kept,
    nearest,
    panel_kernel,
    put,
    registers,
    spread,
    tiles,
    word_dot,
)
from export.processor.vectors import Index

WEIGHT_BITS = 13
"""Of the largest weight: a panel of such weights times values fits 32 bits."""

NONE = -3e38
"""The score of a token that is not there."""


def panel_attention(heads: PanelHeads) -> tirx.PrimFunc:
    """Arguments: qkv float32 (panels, 3 * width, PANEL); where heads are turned, turns float32 (panels, size, PANEL), the
    cosines of half as many angles and then their sines; int64 tokens, which the panels hold in all; and out float32 (panels,
    width, PANEL).

    Raises:
        ValueError: `unsupported` says why.
    """
    if unsupported(heads):
        raise ValueError(f"no attention is written for {unsupported(heads)}")
    shapes = {
        "qkv": ("float32", ("panels", 3 * heads.width, PANEL)),
        **({"turns": ("float32", ("panels", heads.size, PANEL))} if heads.turned else {}),
        "tokens": NUMBER,
        "out": ("float32", ("panels", heads.width, PANEL)),
    }

    def write(arrays: Mapping[str, tirx.Buffer]) -> None:
        with block("both"):
            panels = arrays["panels"]
            room = RoundedHeads.of(heads, panels)
            with T.parallel(0, panels * heads.heads) as item, block("round"):
                turns = arrays.get("turns")
                room.write(arrays["qkv"], turns, item // heads.heads, item % heads.heads, arrays["tokens"])
            # head by head, so that a core reads the same keys again
            with T.parallel(0, panels * heads.heads) as item, block("attend"):
                _Queries(room, item % panels, item // panels).write(arrays["out"], panels, arrays["tokens"])

    return panel_kernel(shapes, write)


class _Queries:
    """The queries of one head in one panel.

    Attributes:
        scores: float32 (PANEL, PANEL), of a panel of keys by key and query.
        weights: int32 (PANEL / 2, PANEL), two keys' weights each.
        total: float32 (size, PANEL), values times weights.
        largest, summed, change: of each query the largest score, the sum of weights, and the factor of older ones.
    """

    def __init__(self, room: RoundedHeads, panel: tirx.Expr, head: tirx.Expr) -> None:
        self.room, self.panel, self.head = room, panel, head
        self.scores = T.sblock_alloc_buffer((PANEL, PANEL), "float32")
        self.weights = T.sblock_alloc_buffer((PANEL // 2, PANEL), "int32")
        self.total = T.sblock_alloc_buffer((room.heads.size, PANEL), "float32")
        self.largest, self.summed, self.change = (T.sblock_alloc_buffer((PANEL,), "float32") for _ in range(3))
        self.sums = registers("int32", TILE, VECTORS)

    def write(self, out: tirx.Buffer, panels: tirx.Expr, tokens: tirx.Expr) -> None:
        size = self.room.heads.size
        for vector in range(VECTORS):
            T.buffer_store(self.largest, every(NONE), [at(vector)])
            T.buffer_store(self.summed, every(0.0), [at(vector)])
        with T.serial(0, size) as channel:
            for vector in range(VECTORS):
                T.buffer_store(self.total, every(0.0), [channel, at(vector)])
        with T.serial(0, panels) as other:
            tiles(PANEL, lambda first, count: self._score(other, first, count))
            with T.serial(T.min(PANEL, T.Cast("int32", tokens - other * PANEL)), PANEL) as behind:
                for vector in range(VECTORS):
                    T.buffer_store(self.scores, every(NONE), [behind, at(vector)])
            self._weigh()
            tiles(size, lambda first, count: self._add_values(other, first, count))
        for vector in range(VECTORS):
            T.buffer_store(self.change, every(1.0) / self.summed[at(vector)], [at(vector)])
        with T.serial(0, size) as channel:
            for vector in range(VECTORS):
                value = self.total[channel, at(vector)] * self.change[at(vector)]
                T.buffer_store(out, value, [self.panel, self.head * size + channel, at(vector)])

    def _multiply(self, many: Index, count: int, vectors: Callable, numbers: Callable) -> None:
        """``sums`` of ``count`` rows: ``many`` vectors of queries, each times a pair of numbers of every row."""
        for row in range(count):
            for vector in range(VECTORS):
                put(self.sums, spread(T.int32(0)), row, vector)
        with T.serial(0, many) as two:
            for row in range(count):
                number = spread(numbers(two, row))
                for vector in range(VECTORS):
                    put(self.sums, word_dot(got(self.sums, row, vector), vectors(two, vector), number), row, vector)

    def _score(self, other: Index, first: Index, count: int) -> None:
        room, mine, theirs = self.room, (self.panel, self.head), (other, self.head)
        queries = lambda two, vector: room.queries[(*mine, two, at(vector))]  # noqa: E731
        keys = lambda two, row: room.keys[(*theirs, two, first + row)]  # noqa: E731
        self._multiply(room.heads.size // 2, count, queries, keys)
        for row in range(count):
            scale = spread(room.key_scales[(*theirs, first + row)])
            for vector in range(VECTORS):
                score = as_float(got(self.sums, row, vector)) * (room.query_scales[(*mine, at(vector))] * scale)
                T.buffer_store(self.scores, score, [first + row, at(vector)])

    def _weigh(self) -> None:
        """Scores become weights of the largest so far."""
        largest, summed, below = (registers("float32", VECTORS) for _ in range(3))
        for vector in range(VECTORS):
            put(largest, self.largest[at(vector)], vector)
        with T.serial(0, PANEL) as key:
            for vector in range(VECTORS):
                put(largest, T.max(got(largest, vector), self.scores[key, at(vector)]), vector)
        for vector in range(VECTORS):
            change = exp2(self.largest[at(vector)] - got(largest, vector), LANES)
            T.buffer_store(self.change, change, [at(vector)])
            T.buffer_store(self.largest, got(largest, vector), [at(vector)])
            put(summed, self.summed[at(vector)] * self.change[at(vector)], vector)
            put(below, got(largest, vector) - every(WEIGHT_BITS), vector)
        with T.serial(0, PANEL // 2) as two, block("pair"):
            for vector in range(VECTORS):
                both = [kept(exp2(self.scores[2 * two + side, at(vector)] - got(below, vector), LANES)) for side in range(2)]
                put(summed, got(summed, vector) + operator.add(*both), vector)
                T.buffer_store(self.weights, paired(*map(nearest, both)), [two, at(vector)])
        for vector in range(VECTORS):
            T.buffer_store(self.summed, got(summed, vector), [at(vector)])

    def _add_values(self, other: Index, first: Index, count: int) -> None:
        room, theirs = self.room, (other, self.head)
        weights = lambda two, vector: self.weights[two, at(vector)]  # noqa: E731

        def values(two: Index, row: int) -> tirx.Expr:
            return T.reinterpret("int32", room.values[(*theirs, first + row, T.ramp(two * 2, 1, 2))])

        self._multiply(PANEL // 2, count, weights, values)
        for row in range(count):
            scale = spread(room.value_scales[(*theirs, first + row)])
            for vector in range(VECTORS):
                older = self.total[first + row, at(vector)] * self.change[at(vector)]
                T.buffer_store(self.total, older + as_float(got(self.sums, row, vector)) * scale, [first + row, at(vector)])
