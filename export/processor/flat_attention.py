"""Attention of one decode step over a cache that lies flat: keys and values (sequence, head, position, channel).

The row's queries and key are rotated, key and value go into the cache in its dtype, and the queries attend to what lies
there, so to their own key and value as they were rounded. ONNX Runtime's GroupQueryAttention reads and writes the same
buffers (microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention; layer by layer
export/backends/onnx/kernels.py). Each head's positions lie behind one another, so memory is read from begin to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.byte_chunks import chunk_of
from export.processor.byte_tiles import ByteSoftmax, byte_softmax, fits
from export.processor.flat_rows import BYTES, FlatHeads, Row, arguments
from export.processor.kernel_frame import kernel
from export.processor.score_tiles import SUMS, TILE, Side, TileSoftmax, tile_softmax
from export.processor.vectors import LINE, Index, prefetch

SECOND = 2
"""The cache that memory is asked into."""

AHEAD, AHEAD_OF_BYTES = 6144, 4096
"""Bytes from the keys, or values, that are read to those that memory is asked for; bytes that are widened take longer."""


def flat_attention(heads: FlatHeads, sums: int = SUMS, words: bool = False) -> tirx.PrimFunc:
    """One row of each sequence: rotated, kept in the caches, and attended to all positions up to its own.

    Arguments, in this order, where n, sequences (at least n) and capacity are read from the arrays:
        qkv: float32 (n, (queries + 2 * keys) * size), not rotated.
        cos, sin: float32 (n, rotary / 2).
        lengths: int32 (n,), positions of each sequence that are filled before this row, less than the capacity.
        key_scales, value_scales: float32 (keys * width), where the cache is int8 alone.
        key_cache, value_cache: (sequences, keys, capacity, width) of the cache's dtype, written in place.
        out: float32 (n, queries * size).

    Args:
        sums: vectors that heads of queries which share keys sum up at once; the numbers do not depend on it.
        words: products with a cache of bytes are of 16 bits (`byte_tiles`), for processors with AVX-512 VNNI.

    Raises:
        ValueError: `export.processor.flat_rows.unsupported` says why.
    """
    with kernel(noalias=True) as builder:
        n = T.int32()
        arrays = arguments(heads, n, n)
        # the heads of one row may go to several cores, and long rows and short ones are mixed
        with T.parallel(0, n * heads.keys) as item, T.sblock("attention"):
            T.reads()
            T.writes()
            Step(heads=heads, sums=sums, words=words, item=item, rows=n, row=item % n, head=item // n, **arrays).write()
    return builder.get()


@dataclass(frozen=True, kw_only=True)
class Step(Row):
    """The statements of one row and one head of keys."""

    sums: int
    words: bool
    item: tirx.Expr
    rows: tirx.Expr

    @property
    def length(self) -> tirx.Expr:
        """Positions before the row's own."""
        return self.lengths[self.row]

    def sequence(self, row: tirx.Expr) -> tirx.Expr:
        """Of the caches, which a row reads."""
        return row

    def keep(self, place: tirx.Buffer) -> None:
        """Append the row's key and value to the caches."""
        self.load_key_and_value(place, self.heads.group)
        self.store(place, self.row, self.length, self.heads.group)

    def write(self) -> None:
        heads, length = self.heads, self.length
        place = T.sblock_alloc_buffer((heads.group + 2, heads.padded), "float32")
        state = self._state()
        self.load_queries(place)
        self.keep(place)
        state.begin(partial(self.query, place), T.float32(heads.scale))
        following = T.sblock_alloc_buffer((1,), "int64")
        after = self.item + 1
        head = T.min(after // self.rows, heads.keys - 1)
        T.buffer_store(following, T.Cast("int64", self.sequence(after % self.rows) * heads.keys + head), [0])
        sides = [self._side(cache, length + 1, following[0]) for cache in (self.key_cache, self.value_cache)]
        state.add_all(length + 1, *sides)
        with T.serial(0, heads.group) as member:
            self.end(self.head * heads.group + member, partial(state.weighted_values, member), state.state[member, 1])

    @property
    def bytes_(self) -> bool:
        """Whether bytes of the cache are multiplied as they lie."""
        return self.words and self.heads.cache == "int8" and fits(self.heads.padded)

    def _state(self) -> TileSoftmax | ByteSoftmax:
        heads = self.heads
        return byte_softmax(heads.group, heads.padded) if self.bytes_ else tile_softmax(heads.group, heads.padded, self.sums)

    def _chunk(self, cache: tirx.Buffer, sequence: Index, position: Index, chunk: Index) -> tirx.Expr:
        return cache[sequence, self.head, T.Cast("int64", position), chunk_of(chunk)]

    def _side(self, cache: tirx.Buffer, seen: tirx.Expr, following: tirx.Expr) -> Side:
        heads, row_bytes = self.heads, self.heads.width * BYTES[self.heads.cache]
        sequence = self.sequence(self.row)
        own = (T.Cast("int64", sequence) * heads.keys + self.head) * cache.shape[2]
        ahead = AHEAD_OF_BYTES if heads.cache == "int8" and not self.bytes_ else AHEAD

        def prefetch_ahead(position: Index) -> None:
            wanted = position + ahead // row_bytes
            number = T.Select(
                wanted < seen, own + T.Cast("int64", wanted), following * cache.shape[2] + T.Cast("int64", wanted - seen)
            )
            for line in range(-(-TILE * row_bytes // LINE)):
                at = number * heads.width + line * LINE // BYTES[heads.cache]
                T.evaluate(prefetch(cache[0, 0, 0, at], SECOND))

        return Side(partial(self._chunk if self.bytes_ else self.read, cache, sequence), prefetch_ahead)
