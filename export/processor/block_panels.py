"""Many rows of numbers at once: a panel of the matrix's rows is decoded once, and a lane of a vector is one of its rows.

What `block_kernel` sums in lanes along a row, and then across them, is summed here in the same order, so that a row of
numbers has the same products, bit for bit, among few others and among many. Packing a panel for all that it is multiplied
with is of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (ACM TOMS 34, 2008).
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import CHUNK, BlockInstructions
from export.processor.block_kernel import TOGETHER
from export.processor.block_rounding import Rounding
from export.processor.block_strides import Strides
from export.processor.panel_order import HALVES, OrderedSums, PanelTile, each_tile, lines_of, widen_scales
from export.processor.row_kernels import silu
from export.processor.vectors import LINE, prefetch

MANY = 24
"""Rows of numbers from which on decoding a panel ahead is worth it."""

ASKED = 2
"""Lines of the next panel's codes that memory is asked for with each chunk: all of them while `MANY` rows pass."""


@dataclass(frozen=True)
class Panels:
    """Writes the products of many rows of numbers with a matrix of whole panels.

    Attributes:
        strides: in whose order products are summed.
        byte: the widest instructions, whose lanes are rows of the matrix.
        gated: products with the first half of the matrix's rows gate those with the second: a panel has as many rows of
            either half, a vector of one beside a vector of the other.
    """

    strides: Strides
    byte: BlockInstructions
    gated: bool = False

    @property
    def fits(self) -> bool:
        """Whether the matrix has whole panels, and rows as long as they are read."""
        matrix = self.strides.matrix
        fits = matrix.rows % TOGETHER == 0 and not self.strides.copied and self.blocks >= HALVES
        return fits and not (self.gated and self.byte.panel_vectors % 2)

    @property
    def blocks(self) -> int:
        """Of a row."""
        return self.strides.matrix.columns // self.strides.matrix.block

    @property
    def vectors(self) -> int:
        """That a panel's rows are the lanes of."""
        return TOGETHER // self.byte.lanes

    def first_row(self, number, vector):
        """The matrix's, of those that are the lanes of a panel's vector."""
        if not self.gated:
            return number * TOGETHER + vector * self.byte.lanes
        half = self.strides.matrix.rows // 2
        return number * (TOGETHER // 2) + vector // 2 * self.byte.lanes + vector % 2 * half

    def write(self, x, codes, scales, bias, out, n):
        """The products of at least ``rows_at_once`` rows."""
        rounding = Rounding(self.strides)
        with T.sblock("many"):
            T.reads()
            T.writes()
            numbers = T.sblock_alloc_buffer((n, self.strides.slots, self.strides.vectors), "int32")
            zeros = T.sblock_alloc_buffer((n, self.strides.slots), "int32")
            factors = T.sblock_alloc_buffer((n, self.strides.slots), "float32")
            with T.parallel(0, n) as row:
                rounding.write_chunks(x, row, numbers, zeros, factors, self.strides.slot)
            with T.parallel(0, self.strides.matrix.rows // TOGETHER) as panel:
                _Panel(self, codes, scales, bias, numbers, zeros, factors, out, n, panel).write()


@dataclass(frozen=True)
class _Panel:
    """`TOGETHER` rows of the matrix times all rows of numbers."""

    panels: Panels
    codes: tirx.Buffer
    scales: tirx.Buffer
    bias: tirx.Buffer | None
    numbers: tirx.Buffer
    zeros: tirx.Buffer
    factors: tirx.Buffer
    out: tirx.Buffer
    n: tirx.Expr
    number: tirx.Expr

    def write(self):
        panels, byte = self.panels, self.panels.byte
        with T.sblock("panel"):
            T.reads()
            T.writes()
            decoded = T.sblock_alloc_buffer(
                (panels.strides.slots, panels.strides.vectors, panels.vectors, byte.lanes), "int32"
            )
            single = T.sblock_alloc_buffer((panels.blocks, panels.vectors, byte.lanes), "float32")
            self._decode(decoded)
            widen_scales(byte, single, partial(panels.first_row, self.number), self.scales)
            each_tile(byte, self.n, panels.vectors, lambda *place: _Tile(*place, self, decoded, single).write())

    def _decode(self, decoded):
        """Codes, each in a byte, of all rows of the panel."""
        panels, byte = self.panels, self.panels.byte
        strides, whole = panels.strides, T.ramp(0, 1, byte.lanes)
        with T.serial(0, strides.matrix.columns // strides.chunk) as chunk:
            for vector in range(panels.vectors):
                first = panels.first_row(self.number, vector)
                lines = lines_of(byte, first, lambda row: self.codes[row, 0, T.ramp(chunk * CHUNK, 1, CHUNK)], CHUNK)
                for at, turned in enumerate(byte.turned(lines)):
                    for side, plain in enumerate(byte.decoded(turned, strides.matrix.bits)):
                        value = T.reinterpret(f"int32x{byte.lanes}", plain)
                        T.buffer_store(decoded, value, [strides.slot(chunk), at * strides.sides + side, vector, whole])


@dataclass(frozen=True)
class _Tile(PanelTile):
    """Some rows of numbers times some vectors of a panel."""

    panel: _Panel
    decoded: tirx.Buffer
    single: tirx.Buffer

    def write(self):
        panel, panels, pairs = self.panel, self.panel.panels, self.pairs
        strides, byte = panels.strides, panels.byte
        lanes, whole = byte.lanes, T.ramp(0, 1, byte.lanes)
        with T.sblock("tile"):
            T.reads()
            T.writes()
            total = OrderedSums.of(strides, len(pairs), lanes)
            kind, sums = byte.sum_type(strides.matrix.bits), total.sums
            exact = T.sblock_alloc_buffer((len(pairs), lanes * 4 // (int(kind[3:]) // 8)), kind)

            def add(slot, chunk):
                self._prefetch(self.part * strides.slots + slot)
                self._add(sums, exact, slot, chunk)

            total.write(panel.n, add)
            for at, (row, vector) in enumerate(pairs):
                begin, value = panels.first_row(panel.number, self.side + vector), sums[at, whole]
                if panels.gated:
                    if vector % 2:
                        continue
                    value = silu(value, lanes) * sums[at + 1, whole]
                elif panel.bias is not None:
                    value = value + panel.bias[T.ramp(begin, 1, lanes)]
                T.buffer_store(panel.out, value, [self.first + row, T.ramp(begin, 1, lanes)])

    def _prefetch(self, passed):
        """Memory is asked for the next panel, while this one is multiplied."""
        panel, matrix, locality = self.panel, self.panel.panels.strides.matrix, self.panel.panels.byte.locality
        halves = 1 + panel.panels.gated
        rows = TOGETHER // halves
        size, last = rows * matrix.columns * matrix.bits // 8, rows * panel.panels.blocks - 1
        for half in range(halves):
            first = panel.panels.first_row(panel.number + 1, half)
            for line in range(ASKED // halves):
                at = T.min((passed * (ASKED // halves) + line), size // LINE - 1)
                T.evaluate(prefetch(panel.codes[first, 0, at * LINE], locality))
            T.evaluate(prefetch(panel.scales[first, T.min(passed * (LINE // 2 // halves), last)], locality))

    def _add(self, sums, exact, slot, chunk):
        """The products of a chunk."""
        panel, strides, byte = self.panel, self.panel.panels.strides, self.panel.panels.byte
        lanes, bits, whole = byte.lanes, strides.matrix.bits, T.ramp(0, 1, byte.lanes)
        all_of = T.ramp(0, 1, int(exact.shape[-1]))
        zero = lambda row: panel.zeros[self.first + row, slot] if strides.zeroed else T.int32(0)  # noqa: E731
        for at, (row, _) in enumerate(self.pairs):
            T.buffer_store(exact, byte.started(T.broadcast(zero(row), lanes), bits), [at, all_of])
        for word in range(strides.vectors):
            for at, (row, vector) in enumerate(self.pairs):
                codes = T.reinterpret(f"uint8x{byte.width}", self.decoded[slot, word, self.side + vector, whole])
                spread = T.broadcast(panel.numbers[self.first + row, slot, word], lanes)
                read = T.reinterpret(f"int8x{byte.width}", spread)
                T.buffer_store(exact, byte.plus(exact[at, all_of], codes, read, bits), [at, all_of])
        block = chunk * strides.chunk // strides.matrix.block
        for at, (row, vector) in enumerate(self.pairs):
            product = byte.ended(exact[at, all_of], T.broadcast(zero(row), lanes), bits)
            factor = T.broadcast(panel.factors[self.first + row, slot], lanes)
            scale = self.single[block, self.side + vector, whole] * factor
            T.buffer_store(sums, sums[at, whole] + T.Cast(f"float32x{lanes}", product) * scale, [at, whole])
