"""Attention of one decode step over a cache that lies flat: keys and values (sequence, head, position, channel).

The row's queries and key are rotated, key and value go into the cache in its dtype, and the queries attend to what lies
there, so to their own key and value as they were rounded. ONNX Runtime's GroupQueryAttention reads and writes the same
buffers (microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention; layer by layer
export/backends/onnx/kernels.py). Each head's positions lie behind one another, so memory is read from begin to end.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import arg, prim_func

from export.processor.online_softmax import LANES, lanes
from export.processor.score_tiles import TILE, Side, tile_softmax

BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Of a number of the cache."""

AHEAD = {"float32": 6144, "float16": 6144, "int8": 4096}
"""Bytes from the keys, or values, that are read to those that memory is asked for; bytes take longer to compute with."""

LINE = 64
"""Bytes that a processor reads at once."""


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


def flat_attention(heads: FlatHeads) -> tirx.PrimFunc:
    """One row of each sequence: rotated, kept in the caches, and attended to all positions up to its own.

    Arguments, in this order, where n, sequences (at least n) and capacity are read from the arrays:
        qkv: float32 (n, (queries + 2 * keys) * size), not rotated.
        cos, sin: float32 (n, rotary / 2).
        lengths: int32 (n,), positions of each sequence that are filled before this row, less than the capacity.
        key_scales, value_scales: float32 (keys * width), where the cache is int8 alone.
        key_cache, value_cache: (sequences, keys, capacity, width) of the cache's dtype, written in place.
        out: float32 (n, queries * size).

    Raises:
        ValueError: `unsupported` says why.
    """
    if reason := unsupported(heads):
        raise ValueError(f"no attention kernel: {reason}")
    bytewise = heads.cache == "int8"
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        names = ["qkv", "cos", "sin", "lengths", *["key_scales", "value_scales"] * bytewise]
        given = {name: arg(name, T.handle()) for name in [*names, "key_cache", "value_cache", "out"]}
        n, sequences, capacity = T.int32(), T.int64(), T.int64()
        packed = (heads.queries + 2 * heads.keys) * heads.size
        cache = (sequences, heads.keys, capacity, heads.width)
        shapes = {"qkv": (n, packed), "cos": (n, heads.rotary // 2), "sin": (n, heads.rotary // 2), "lengths": (n,)}
        shapes |= {name: (heads.keys * heads.width,) for name in ("key_scales", "value_scales")}
        shapes |= {"key_cache": cache, "value_cache": cache, "out": (n, heads.queries * heads.size)}
        kinds = {"lengths": "int32", "key_cache": heads.cache, "value_cache": heads.cache}
        # NumPy's arrays and the rows of a pool begin where they like
        arrays = {name: T.match_buffer(given[name], shapes[name], kinds.get(name, "float32"), align=4) for name in given}
        # the heads of one row may go to several cores, and long rows and short ones are mixed
        with T.parallel(0, n * heads.keys) as item, T.sblock("attention"):
            T.reads()
            T.writes()
            Step(heads, item, n, item % n, item // n, **arrays).write()
    return builder.get()


@dataclass(frozen=True)
class Step:
    """The statements of one row and one head of keys."""

    heads: FlatHeads
    item: tirx.Expr
    rows: tirx.Expr
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

    def write(self) -> None:
        heads, row = self.heads, self.row
        length = self.lengths[row]
        place = T.sblock_alloc_buffer((heads.group + 2, heads.padded), "float32")
        state = tile_softmax(heads.group, heads.padded)
        self._take(place)
        self._keep(place, length)
        state.begin(lambda member, piece: self._query(place, member, piece), T.float32(heads.scale))
        following = T.sblock_alloc_buffer((1,), "int64")
        after = self.item + 1
        head = T.min(after // self.rows, heads.keys - 1)
        T.buffer_store(following, T.Cast("int64", after % self.rows * heads.keys + head), [0])
        sides = [self._side(cache, length + 1, following[0]) for cache in (self.key_cache, self.value_cache)]
        state.add_all(length + 1, *sides)
        self._end(state)

    def _take(self, place) -> None:
        """Rotated queries of the group, the rotated key and the value, with zeros behind them."""
        heads, half = self.heads, self.heads.rotary // 2
        for at in range(heads.group + 2):
            which = self.head * heads.group + at
            if at >= heads.group:
                which = heads.queries + (at - heads.group) * heads.keys + self.head
            first = which * heads.size
            turned = heads.rotary if at <= heads.group else 0
            if turned:
                for begin, many in pieces(0, half):
                    cos, sin = (table[self.row, span(begin, many)] for table in (self.cos, self.sin))
                    lower, upper = (self.qkv[self.row, span(first + begin + side, many)] for side in (0, half))
                    T.buffer_store(place, lower * cos - upper * sin, [at, span(begin, many)])
                    T.buffer_store(place, upper * cos + lower * sin, [at, span(half + begin, many)])
            for begin, many in pieces(turned, heads.size):
                T.buffer_store(place, self.qkv[self.row, span(first + begin, many)], [at, span(begin, many)])
            for begin in range(heads.size, heads.padded):
                T.buffer_store(place, T.float32(0), [at, begin])

    def _keep(self, place, length) -> None:
        """Key and value go into the caches."""
        heads, at = self.heads, T.Cast("int64", length)
        sides = ((self.key_cache, self.key_scales), (self.value_cache, self.value_scales))
        for side, (cache, scales) in enumerate(sides):
            for begin, many in pieces(0, heads.size):
                number = place[heads.group + side, span(begin, many)]
                kind = f"x{many}" * (many > 1)
                if scales is not None:
                    number = T.nearbyint(number / scales[span(self.head * heads.width + begin, many)])
                    number = T.max(T.min(number, every(127, many)), every(-128, many))
                    number = T.Cast(f"int32{kind}", number)
                T.buffer_store(cache, T.Cast(heads.cache + kind, number), [self.row, self.head, at, span(begin, many)])
            for begin, many in pieces(heads.size, heads.width):
                zero = T.Cast(heads.cache, T.float32(0)) if heads.cache != "int8" else T.int8(0)
                zeros = T.broadcast(zero, many) if many > 1 else zero
                T.buffer_store(cache, zeros, [self.row, self.head, at, span(begin, many)])

    def _side(self, cache, seen, following) -> Side:
        heads, row_bytes = self.heads, self.heads.width * BYTES[self.heads.cache]
        own = (T.Cast("int64", self.row) * heads.keys + self.head) * cache.shape[2]

        def read(position, piece):
            return T.Cast(f"float32x{LANES}", cache[self.row, self.head, T.Cast("int64", position), lanes(piece)])

        def ask_ahead(position):
            wanted = position + AHEAD[heads.cache] // row_bytes
            number = T.Select(
                wanted < seen, own + T.Cast("int64", wanted), following * cache.shape[2] + T.Cast("int64", wanted - seen)
            )
            for line in range(-(-TILE * row_bytes // LINE)):
                at = number * heads.width + line * LINE // BYTES[heads.cache]
                T.evaluate(ask(cache[0, 0, 0, at]))

        return Side(read, ask_ahead)

    def _query(self, place, member, piece):
        """Folded with the scales of keys in bytes."""
        query = place[member, lanes(piece)]
        if self.key_scales is None:
            return query
        return query * self.key_scales[span(self.head * self.heads.width + piece * LANES, LANES)]

    def _end(self, state) -> None:
        """The sums of values, folded with the scales of those in bytes."""
        heads = self.heads
        with T.serial(0, heads.group) as member:
            first, weights = (self.head * heads.group + member) * heads.size, state.state[member, 1]
            for begin, many in pieces(0, heads.size):
                share = state.total[member, span(begin, many)] / (T.broadcast(weights, many) if many > 1 else weights)
                if self.value_scales is not None:
                    share = share * self.value_scales[span(self.head * heads.width + begin, many)]
                T.buffer_store(self.out, share, [self.row, span(first + begin, many)])


def ask(element):
    """A processor's second cache is asked for what lies there; an address outside is of no consequence."""
    # TVM 0.27 gives a system library's prefix to no call that returns a pointer (export.backends.mlc.passes.row_product)
    address = T.call_intrin("uint64", "tirx.address_of", element)
    return T.call_llvm_intrin("void", "llvm.prefetch.p0", address, T.int32(0), T.int32(2), T.int32(1))


def pieces(begin: int, end: int) -> list[tuple[int, int]]:
    """Whole vectors of the channels from ``begin`` to before ``end`` and then single ones: (first, how many)."""
    whole = (end - begin) // LANES * LANES
    return [(at, LANES) for at in range(begin, begin + whole, LANES)] + [(at, 1) for at in range(begin + whole, end)]


def span(begin, many):
    return T.ramp(begin, 1, many) if many > 1 else begin


def every(number: float, many: int):
    return T.broadcast(T.float32(number), many) if many > 1 else T.float32(number)
