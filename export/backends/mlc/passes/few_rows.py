"""A few rows of numbers times rows of a matrix as they lie: each code is read once for some rows of numbers."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.backends.mlc.parameters import GROUP, PER_WORD
from export.backends.mlc.passes.fixed_rows import FixedPoint
from export.processor.block_instructions import VECTORS
from export.processor.block_strides import Strides, added_up
from export.processor.byte_products import ByteProducts
from export.processor.kernel_frame import whole_of
from export.processor.vectors import FIRST, LINE, fused, prefetch

TOGETHER = 32
"""Rows of the matrix that lie in a core's cache while rows of numbers pass by, each of which lies in its fastest one."""


@dataclass(frozen=True)
class FewRows:
    """Writes the products of all rows of numbers, tile by tile.

    Attributes:
        strides: how a row is taken.
        byte: by what instructions.
        x: (batch, tokens, columns).
        words, scales: the matrix's.
        out: float32 (batch, tokens, rows).
    """

    strides: Strides
    byte: ByteProducts
    x: tirx.Buffer
    words: tirx.Buffer
    scales: tirx.Buffer
    out: tirx.Buffer

    @property
    def numbers(self):
        return self.x.shape[0] * self.x.shape[1]

    def write(self):
        strides, fixed_point, numbers = self.strides, FixedPoint(self.strides, self.x), self.numbers
        lanes, tile = strides.byte.lanes, strides.byte.rows_at_once
        with T.sblock("few"):
            T.reads(*(whole_of(buffer) for buffer in (self.x, self.words, self.scales)))
            T.writes(whole_of(self.out))
            planes = T.sblock_alloc_buffer((numbers, strides.count, fixed_point.planes, strides.vectors, lanes), "int32")
            zeros = T.sblock_alloc_buffer((numbers, strides.count, lanes), "int32")
            powers = T.sblock_alloc_buffer((numbers, strides.count, lanes), "float32")
            fixed = planes, zeros, powers
            with T.parallel(0, numbers) as row, T.sblock("fixed_point"):
                T.reads(whole_of(self.x))
                T.writes(*(whole_of(buffer) for buffer in fixed))
                fixed_point.write_planes(row, *fixed)
            with T.parallel(0, -(-strides.matrix.rows // TOGETHER)) as block:
                whole = 0
                if not isinstance(numbers, tirx.IntImm) or int(numbers) >= tile:
                    whole = numbers // tile * tile
                    with T.serial(0, numbers // tile) as part:
                        self._rows(fixed, block, part * tile, tile)
                with T.serial(0, numbers - whole) as rest:
                    self._rows(fixed, block, whole + rest, 1)

    def _rows(self, fixed, block, first, count):
        """``count`` rows of numbers from ``first`` on, times the block."""
        strides, rows, tokens = self.strides, self.strides.matrix.rows, self.x.shape[1]
        lanes, side = strides.byte.lanes, strides.byte.matrix_rows
        whole, together = T.ramp(0, 1, lanes), TOGETHER // side
        with T.serial(0, T.min(together, -(-rows // side) - block * together)) as within:  # noqa: SIM117
            with T.sblock("row"):
                T.reads(*(whole_of(buffer) for buffer in (*fixed, self.words, self.scales)))
                T.writes(whole_of(self.out))
                sums = T.sblock_alloc_buffer((side, count, lanes), "float32")
                kept = T.sblock_alloc_buffer((side, strides.vectors, lanes), "int32")
                scale = T.sblock_alloc_buffer((side, lanes), "float32")
                chosen = [block * TOGETHER + within * side + at for at in range(side)]
                if rows % side:
                    # the last row is multiplied more than once where there are too few
                    chosen = [T.min(row, rows - 1) for row in chosen]
                pairs = [(at, number) for number in range(count) for at in range(side)]
                for pair in pairs:
                    T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [*pair, whole])
                kind = _Copied if strides.copied else _InPlace
                sources = [kind(self.words, self.scales, row, strides) for row in chosen]
                with T.serial(0, strides.count) as stride:
                    self._prefetch(block, side, within * strides.count + stride, self.byte.near if count == 1 else 0)
                    for at in range(side):
                        self._decode(sources[at], kept, scale, at, stride)
                    for at, number in pairs:
                        self._add(fixed, kept, scale, sums, first, at, number, stride)
                for at, number in pairs:
                    place = (first + number) // tokens, (first + number) % tokens, chosen[at]
                    T.buffer_store(self.out, added_up(sums[at, number, whole], lanes), [*place])

    def _prefetch(self, block, side, passed, near):
        """Memory is asked for line after line, whatever rows are multiplied; ``near``: bytes from the last of them, or 0."""
        strides, matrix, byte = self.strides, self.strides.matrix, self.byte
        row = matrix.columns // 2
        each = side * row // strides.count
        for line in range(-(-each // LINE)):
            at = passed * each + line * LINE
            T.evaluate(prefetch(self.words[block * TOGETHER, (at + byte.ahead) // 4], byte.locality))
            if near:
                T.evaluate(prefetch(self.words[block * TOGETHER, (at + (side - 1) * row + near) // 4], FIRST))
        scales = side * (matrix.columns // GROUP) // strides.count
        T.evaluate(prefetch(self.scales[block * TOGETHER, passed * scales + byte.ahead * 2 // GROUP], byte.locality))

    def _decode(self, source, kept, scale, place, stride):
        """The codes of a stride, and its scales by lane."""
        strides, byte = self.strides, self.strides.byte
        lanes, whole = byte.lanes, T.ramp(0, 1, byte.lanes)
        column = strides.first_column(stride)
        read = [source.codes(column // PER_WORD + at * lanes, lanes) for at in range(VECTORS)]
        for at, vector in enumerate(byte.turned(read)):
            for half, decoded in enumerate(byte.decoded(vector, strides.matrix.bits)):
                T.buffer_store(kept, T.reinterpret(f"int32x{lanes}", decoded), [place, at * strides.sides + half, whole])
        single = T.Cast(f"float32x{lanes}", source.scales(column // GROUP, lanes))
        order = [strides.scale_of(lane) for lane in range(lanes)]
        T.buffer_store(scale, tirx.Shuffle([single], order), [place, whole])

    def _add(self, fixed, kept, scale, sums, first, place, number, stride):
        """The products of a stride of one row of the matrix with one row of numbers."""
        strides, byte = self.strides, self.strides.byte
        planes, zeros, powers = fixed
        lanes, whole, row = byte.lanes, T.ramp(0, 1, byte.lanes), first + number
        plane = lambda which, at: T.reinterpret(f"int8x{byte.width}", planes[row, stride, which, at, whole])  # noqa: E731
        codes = [T.reinterpret(f"uint8x{byte.width}", kept[place, at, whole]) for at in range(strides.vectors)]
        exact = self.byte.sums(codes, plane, int(planes.shape[2]), zeros[row, stride, whole])
        factor = scale[place, whole] * powers[row, stride, whole]
        total = fused(T.Cast(f"float32x{lanes}", exact), factor, sums[place, number, whole])
        T.buffer_store(sums, total, [place, number, whole])


@dataclass(frozen=True)
class _InPlace:
    """Codes and scales of a row where they lie."""

    words: tirx.Buffer
    scales_of_rows: tirx.Buffer
    row: tirx.Expr
    strides: Strides

    def codes(self, first, count):
        return T.reinterpret(f"uint8x{4 * count}", self.words[self.row, T.ramp(first, 1, count)])

    def scales(self, first, count):
        return self.scales_of_rows[self.row, T.ramp(first, 1, count)]


class _Copied(_InPlace):
    """Those of a row shorter than a stride, with zeros behind them."""

    def __init__(self, words, scales, row, strides):
        lanes = strides.byte.lanes
        copies = T.sblock_alloc_buffer((1, VECTORS * lanes), "uint32"), T.sblock_alloc_buffer((1, lanes), str(scales.dtype))
        for copy, source, none in zip(copies, (words, scales), (T.uint32(0), tirx.const(0, scales.dtype)), strict=True):
            with T.serial(0, int(copy.shape[1])) as at:
                T.buffer_store(copy, none, [0, at])
            with T.serial(0, int(source.shape[1])) as at:
                T.buffer_store(copy, source[row, at], [0, at])
        super().__init__(*copies, 0, strides)
