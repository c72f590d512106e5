"""What the kernels over a flat cache share: the row that a token has in a call, and its places in the cache.

A row holds the queries, keys and values of all heads. Queries and keys are rotated, keys and values go into the cache in
its dtype, from which vectors are read as float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.online_softmax import LANES, lanes
from export.processor.vectors import Index, fused, span, splat

BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Of a number of the cache."""


@dataclass(frozen=True)
class FlatHeads:
    """Shapes of the heads of one layer.

    Attributes:
        queries: heads of queries, a multiple of ``keys``.
        keys: heads of keys and values.
        size: channels of a head.
        width: channels of a head in the cache, at least ``size``; those behind are zeros.
        rotary: the first channels of a head, an even number, that are rotated: each with the one half of them away.
        scale: of scores.
        cache: "float16", "float32" or "int8", which has a scale for every channel of keys and of values.
    """

    queries: int
    keys: int
    size: int
    width: int
    rotary: int
    scale: float
    cache: str

    @property
    def group(self) -> int:
        """Heads of queries that share one of keys."""
        return self.queries // self.keys

    @property
    def padded(self) -> int:
        """Channels that are read of a head."""
        return -(-self.size // LANES) * LANES


def unsupported(heads: FlatHeads) -> str:
    """Why there is no kernel for these heads; empty where there is one."""
    if heads.cache not in BYTES:
        return f"the cache is {heads.cache}, expected one of {', '.join(BYTES)}"
    if heads.keys < 1 or heads.queries % heads.keys:
        return f"{heads.queries} heads of queries do not share {heads.keys} of keys evenly"
    if heads.rotary % 2 or not 0 <= heads.rotary <= heads.size:
        return f"{heads.rotary} of {heads.size} channels are rotated, expected an even number of them"
    if heads.width < heads.padded:
        return f"a head has {heads.width} channels in the cache, expected at least {heads.padded}, whole vectors"
    return ""


def arguments(
    heads: FlatHeads, rows: tirx.Var, lengths: tirx.Var | int, told: tirx.Var | int | None = None
) -> dict[str, tirx.Buffer]:
    """Declare the arrays of a kernel, in order, in the function that is being built.

    Args:
        rows: tokens of the call, of all its sequences.
        lengths: how many sequences the call has a length of.
        told: rows of ``out``, where not as many as tokens.

    Raises:
        ValueError: `unsupported` says why.
    """
    if reason := unsupported(heads):
        raise ValueError(f"no attention kernel: {reason}")
    names = ["qkv", "cos", "sin", "lengths", *["key_scales", "value_scales"] * (heads.cache == "int8")]
    given = {name: arg(name, T.handle()) for name in [*names, "key_cache", "value_cache", "out"]}
    sequences, capacity = T.int64(), T.int64()
    packed = (heads.queries + 2 * heads.keys) * heads.size
    cache = (sequences, heads.keys, capacity, heads.width)
    tables = (rows, heads.rotary // 2)
    shapes: dict[str, tuple[Any, ...]] = {"qkv": (rows, packed), "cos": tables, "sin": tables}
    written = (rows if told is None else told, heads.queries * heads.size)
    shapes |= {"lengths": (lengths,), "out": written, "key_cache": cache, "value_cache": cache}
    shapes |= {name: (heads.keys * heads.width,) for name in ("key_scales", "value_scales")}
    kinds = {"lengths": "int32", "key_cache": heads.cache, "value_cache": heads.cache}
    # NumPy's arrays and the rows of a pool begin where they like
    return {name: T.match_buffer(given[name], shapes[name], kinds.get(name, "float32"), align=4) for name in given}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The statements of one row and one head of keys."""

    heads: FlatHeads
    row: tirx.Expr
    head: tirx.Expr
    qkv: tirx.Buffer
    cos: tirx.Buffer
    sin: tirx.Buffer
    lengths: tirx.Buffer
    key_cache: tirx.Buffer
    value_cache: tirx.Buffer
    out: tirx.Buffer
    key_scales: tirx.Buffer | None = None
    value_scales: tirx.Buffer | None = None

    def load_queries(self, place: tirx.Buffer, first: int = 0) -> None:
        """Write rotated queries of the group to ``place`` (heads, padded), with zeros behind them."""
        for at in range(self.heads.group):
            self._load(place, first + at, self.head * self.heads.group + at, self.heads.rotary)

    def load_key_and_value(self, place: tirx.Buffer, first: int = 0) -> None:
        """Write the rotated key and the value to ``place``, with zeros behind them."""
        heads = self.heads
        self._load(place, first, heads.queries + self.head, heads.rotary)
        self._load(place, first + 1, heads.queries + heads.keys + self.head, 0)

    def _load(self, place: tirx.Buffer, at: int, number: tirx.Expr, rotary: int) -> None:
        heads, half, first = self.heads, self.heads.rotary // 2, number * self.heads.size
        if rotary:
            for begin, many in pieces(0, half):
                cos, sin = (table[self.row, span(begin, many)] for table in (self.cos, self.sin))
                lower, upper = (self.qkv[self.row, span(first + begin + side, many)] for side in (0, half))
                # said outright, so that kernels that are to agree bit for bit do
                T.buffer_store(place, fused(lower, cos, splat(-1.0, many) * upper * sin), [at, span(begin, many)])
                T.buffer_store(place, fused(lower, sin, upper * cos), [at, span(half + begin, many)])
        for begin, many in pieces(rotary, heads.size):
            T.buffer_store(place, self.qkv[self.row, span(first + begin, many)], [at, span(begin, many)])
        for begin in range(heads.size, heads.padded):
            T.buffer_store(place, T.float32(0), [at, begin])

    def store(self, place: tirx.Buffer, sequence: Index, position: tirx.Expr, first: int = 0) -> None:
        """Append what `load_key_and_value` left in ``place`` to the caches."""
        heads, at = self.heads, T.Cast("int64", position)
        sides = ((self.key_cache, self.key_scales), (self.value_cache, self.value_scales))
        for side, (cache, scales) in enumerate(sides):
            for begin, many in pieces(0, heads.size):
                number = place[first + side, span(begin, many)]
                kind = f"x{many}" * (many > 1)
                if scales is not None:
                    number = T.nearbyint(number / scales[span(self.head * heads.width + begin, many)])
                    number = T.max(T.min(number, splat(127, many)), splat(-128, many))
                    number = T.Cast(f"int32{kind}", number)
                T.buffer_store(cache, T.Cast(heads.cache + kind, number), [sequence, self.head, at, span(begin, many)])
            for begin, many in pieces(heads.size, heads.width):
                zero = T.Cast(heads.cache, T.float32(0)) if heads.cache != "int8" else T.int8(0)
                zeros = T.broadcast(zero, many) if many > 1 else zero
                T.buffer_store(cache, zeros, [sequence, self.head, at, span(begin, many)])

    def read(self, cache: tirx.Buffer, sequence: Index, position: Index, piece: Index) -> tirx.Expr:
        """float32 vector ``piece`` of a position, without the scales of bytes."""
        return T.Cast(f"float32x{LANES}", cache[sequence, self.head, T.Cast("int64", position), lanes(piece)])

    def query(self, place: tirx.Buffer, member: Index, piece: Index) -> tirx.Expr:
        """A vector of what `load_queries` left, multiplied by the scales of keys in bytes."""
        query = place[member, lanes(piece)]
        if self.key_scales is None:
            return query
        return query * self.key_scales[span(self.head * self.heads.width + piece * LANES, LANES)]

    def end(self, query: tirx.Expr, vector: Callable[[int, int], tirx.Expr], weights: tirx.Expr) -> None:
        """Write the output of a head of queries: values times weights, ``vector`` (first, many), by the sum of weights."""
        heads = self.heads
        for begin, many in pieces(0, heads.size):
            share = vector(begin, many) / (T.broadcast(weights, many) if many > 1 else weights)
            if self.value_scales is not None:
                share = share * self.value_scales[span(self.head * heads.width + begin, many)]
            T.buffer_store(self.out, share, [self.row, span(query * heads.size + begin, many)])


def keep_all(heads: FlatHeads, tokens: tirx.Expr, arrays: dict[str, tirx.Buffer]) -> None:
    """Append keys and values of all tokens of a call to the first sequence of the caches."""
    with T.parallel(0, tokens * heads.keys) as item, T.sblock("keep"):
        T.reads()
        T.writes()
        row = Row(heads=heads, row=item // heads.keys, head=item % heads.keys, **arrays)
        place = T.sblock_alloc_buffer((2, heads.padded), "float32")
        row.load_key_and_value(place)
        row.store(place, 0, arrays["lengths"][0] + row.row)


def pieces(begin: int, end: int) -> list[tuple[int, int]]:
    """Whole vectors of the channels from ``begin`` to before ``end`` and then single ones: (first, how many)."""
    whole = (end - begin) // LANES * LANES
    return [(at, LANES) for at in range(begin, begin + whole, LANES)] + [(at, 1) for at in range(begin + whole, end)]
