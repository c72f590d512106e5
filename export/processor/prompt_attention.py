"""Attention of a prompt over a flat cache: many tokens of one sequence in one call, as `flat_attention` has one of several.

Keys and values of all tokens go into the cache first. Then each core takes a head of keys and a tile of tokens, whose
queries (`members`) share what is read: a block of positions is widened once, keys with the positions side by side, so that a
channel of a query is multiplied with many of them at once and no vector has to be added up (`register_tiles`; in 16 bits
`word_tiles`). A token's sums have the same order whatever the call's other tokens are. Only infinity is not kept apart in
float32: what a token does not see of its panel of rows has the weight zero, and zero times an infinite value is no number.
In 16 bits a token that sees an infinite number, or none, of keys or values gets no number, and no other is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.flat_attention import SECOND
from export.processor.flat_rows import BYTES, FlatHeads, Row, arguments, keep_all
from export.processor.kernel_frame import kernel
from export.processor.online_softmax import LANES
from export.processor.register_tiles import BLOCK, ROWS, prompt_softmax
from export.processor.score_tiles import Side
from export.processor.vectors import LINE, Index, prefetch
from export.processor.word_tiles import word_softmax

MEMBERS = {False: 96, True: 192}
"""Heads of queries that share what is read of a head of keys, about, by whether products are of 16 bits."""


def most_of(heads: FlatHeads, words: bool = False) -> int:
    """Tokens of a tile, at most."""
    return max(4, MEMBERS[words] // heads.group)


def prompt_attention(heads: FlatHeads, words: bool = False, last: bool = False) -> tirx.PrimFunc:
    """Tokens of one sequence: rotated, kept in the caches, and each attended to all positions up to its own.

    Args:
        words: products are of 16 bits (`word_tiles`), for processors with AVX-512 VNNI; else of float32.
        last: the last token alone attends, in the bits that it has among the others.

    Arguments, in this order, where t, sequences (at least 1) and capacity are read from the arrays:
        qkv: float32 (t, (queries + 2 * keys) * size), not rotated.
        cos, sin: float32 (t, rotary / 2).
        lengths: int32 (1,), positions that are filled before the first of these tokens, at most the capacity less t.
        key_scales, value_scales: float32 (keys * width), where the cache is int8 alone.
        key_cache, value_cache: (sequences, keys, capacity, width) of the cache's dtype; the first sequence is written.
        out: float32 (t, queries * size), of ``last`` (1, queries * size).

    Raises:
        ValueError: `export.processor.flat_rows.unsupported` says why.
    """
    with kernel(noalias=True) as builder:
        tokens = T.int32()
        arrays = arguments(heads, tokens, 1, 1 if last else None)
        keep_all(heads, tokens, arrays)
        most = 1 if last else most_of(heads, words)
        tiles = 1 if last else (tokens + most - 1) // most
        with T.parallel(0, tiles * heads.keys) as item, T.sblock("attention"):
            T.reads()
            T.writes()
            if last:
                Tile(heads, words, most, tokens - 1, tokens, tokens - 1, item, arrays).write()
            else:
                number = number_of(item % tiles, tiles)
                begin, end = (at * tokens // tiles for at in (number, number + 1))
                Tile(heads, words, most, begin, end, 0, item // tiles, arrays).write()
    return builder.get()


def number_of(turn: tirx.Expr, tiles: tirx.Expr) -> tirx.Expr:
    """Which tile is taken in which turn: one from the begin, one from the end, as later ones take longer."""
    return T.if_then_else(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2)


@dataclass(frozen=True)
class Tile:
    """The statements of the tokens of one tile and one head of keys.

    Attributes:
        most: tokens, at most.
        begin, end: the tokens, of all that the call has.
        untold: tokens before them that the output has no rows of.
    """

    heads: FlatHeads
    words: bool
    most: int
    begin: tirx.Expr
    end: tirx.Expr
    untold: tirx.Expr | int
    head: tirx.Expr
    arrays: dict[str, tirx.Buffer]

    def write(self) -> None:
        heads = self.heads
        place = T.sblock_alloc_buffer((heads.group, heads.padded), "float32")
        sizes = self.most * heads.group, heads.group, heads.size, heads.padded
        state = word_softmax(*sizes, heads.cache) if self.words else prompt_softmax(*sizes)
        numbers = T.sblock_alloc_buffer((4,), "int32")
        first, here, before, seen = (numbers[at] for at in range(4))
        T.buffer_store(numbers, self.begin, [0])
        T.buffer_store(numbers, self.end - first, [1])
        T.buffer_store(numbers, self.arrays["lengths"][0] + first, [2])
        T.buffer_store(numbers, before + here, [3])
        with T.serial(0, here) as token:
            row = self._row(first + token)
            row.load_queries(place)
            with T.serial(0, heads.group) as member:
                state.begin(token * heads.group + member, partial(row.query, place, member), heads.scale)
        panels = (here * heads.group + ROWS - 1) // ROWS
        row = self._row(first)
        with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:
            begin = block * BLOCK
            state.unpack(
                T.min(BLOCK, seen - begin), *(self._side(row, side, begin) for side in (row.key_cache, row.value_cache))
            )
            with T.serial(0, panels) as panel:
                state.add(panel, before + 1 - begin, here)
        with T.serial(0, here) as token:
            row = self._row(first - self.untold + token)
            with T.serial(0, heads.group) as member:
                at = token * heads.group + member
                row.end(self.head * heads.group + member, partial(state.weighted_values, at), state.weights(at))

    def _side(self, row: Row, cache: tirx.Buffer, begin: tirx.Expr) -> Side:
        def prefetch_ahead(eight: Index) -> None:
            at = T.Cast("int64", begin + BLOCK + eight * LANES)
            for first in range(0, LANES * self.heads.width, LINE // BYTES[self.heads.cache]):
                T.evaluate(prefetch(cache[0, self.head, at, first], SECOND))

        def read(position: Index, piece: Index) -> tirx.Expr:
            return row.read(cache, 0, begin + position, piece)

        return Side(read, prefetch_ahead)

    def _row(self, token: tirx.Expr) -> Row:
        return Row(heads=self.heads, row=token, head=self.head, **self.arrays)
