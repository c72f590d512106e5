"""Many rows of numbers times a matrix: a panel of its rows is decoded once, and a lane of a vector is one of its rows.

Codes become 16-bit numbers without their zero point, two of which are multiplied and added to a lane by one instruction.
What `few_rows` adds in lanes along a row, and then across them, is added here in the same order, so that a row has the same
products, bit for bit, among few others and among many. As `export.processor.block_panels`, after Goto and van de Geijn,
Anatomy of High-Performance Matrix Multiplication (ACM TOMS 34, 2008).
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T

from export.backends.mlc.blocks.linear import ZERO_POINT
from export.backends.mlc.parameters import GROUP, PER_WORD
from export.backends.mlc.passes.few_rows import TOGETHER, FewRows
from export.backends.mlc.passes.fixed_rows import WORDS, FixedPoint
from export.processor.block_instructions import CHUNK, VECTORS, BlockInstructions
from export.processor.kernel_frame import whole_of
from export.processor.panel_order import HALVES, OrderedSums, PanelTile, each_tile, lines_of, widen_scales
from export.processor.vectors import LINE, fused, prefetch

MANY = 24
"""Rows of numbers from which on decoding a panel ahead is worth it."""

ASKED = 2
"""Lines of the next panel's codes that memory is asked for with each group: all of them while `MANY` rows pass."""

NEAR = 1 << 18
"""Bytes of a panel that a core's second cache keeps at hand while rows of numbers pass."""


@dataclass(frozen=True)
class ManyRows:
    """Writes the products of at least `MANY` rows of numbers.

    Attributes:
        few: what is multiplied, and in whose order products are added.
    """

    few: FewRows

    @property
    def fits(self) -> bool:
        """Whether there are instructions, the matrix has whole panels, and rows as long as they are read."""
        matrix = self.few.strides.matrix
        return (
            self.few.byte.many is not None
            and str(self.few.x.dtype) == "float16"
            and matrix.rows % TOGETHER == 0
            and not self.few.strides.copied
            and self.groups >= HALVES
        )

    @property
    def byte(self) -> BlockInstructions:
        """Whose lanes are rows of the matrix. More rows of numbers for each vector of a panel read the panel less often."""
        byte = self.few.byte.many
        if byte.panel_vectors == 1 or TOGETHER * self.few.strides.matrix.columns * 2 <= NEAR:
            return byte
        return replace(byte, rows_at_once=byte.rows_at_once * byte.panel_vectors, panel_vectors=1)

    @property
    def groups(self) -> int:
        """Of a row."""
        return self.few.strides.matrix.columns // GROUP

    @property
    def vectors(self) -> int:
        """That a panel's rows are the lanes of."""
        return TOGETHER // self.byte.lanes

    def write(self):
        few = self.few
        numbers, fixed_point = few.numbers, FixedPoint(few.strides, few.x)
        with T.sblock("many"):
            T.reads(*(whole_of(buffer) for buffer in (few.x, few.words, few.scales)))
            T.writes(whole_of(few.out))
            words = T.sblock_alloc_buffer((numbers, few.strides.slots, WORDS), "int32")
            powers = T.sblock_alloc_buffer((numbers, few.strides.slots), "float32")
            with T.parallel(0, numbers) as row, T.sblock("fixed_point"):
                T.reads(whole_of(few.x))
                T.writes(whole_of(words), whole_of(powers))
                fixed_point.write_words(row, words, powers, few.strides.slot)
            with T.parallel(0, few.strides.matrix.rows // TOGETHER) as panel:
                _Panel(self, words, powers, panel).write()


@dataclass(frozen=True)
class _Panel:
    """`TOGETHER` rows of the matrix times all rows of numbers."""

    many: ManyRows
    words: tirx.Buffer
    powers: tirx.Buffer
    number: tirx.Expr

    def write(self):
        many, few, byte = self.many, self.many.few, self.many.byte
        with T.sblock("panel"):
            T.reads(*(whole_of(buffer) for buffer in (self.words, self.powers, few.words, few.scales)))
            T.writes(whole_of(few.out))
            decoded = T.sblock_alloc_buffer((few.strides.slots, WORDS, many.vectors, byte.lanes), "int32")
            single = T.sblock_alloc_buffer((many.groups, many.vectors, byte.lanes), "float32")
            self._decode(decoded)
            widen_scales(byte, single, self._first_row, few.scales)
            each_tile(byte, few.numbers, many.vectors, lambda *place: _Tile(*place, self, decoded, single).write())

    def _decode(self, decoded):
        """Codes of all rows of the panel, two in each lane: those of the columns i and i + 4 of a word."""
        many, byte = self.many, self.many.byte
        lanes, whole = byte.lanes, T.ramp(0, 1, byte.lanes)
        points = T.broadcast(T.int16(ZERO_POINT), 2 * lanes)
        with T.serial(0, many.groups) as group:
            for vector in range(many.vectors):
                read = lambda row: self.many.few.words[row, T.ramp(group * VECTORS, 1, VECTORS)]  # noqa: E731
                for at, turned in enumerate(byte.turned(lines_of(byte, self._first_row(vector), read, VECTORS))):
                    words = T.reinterpret(f"uint32x{lanes}", turned)
                    for pair in range(PER_WORD // 2):
                        shifted = T.shift_right(words, T.broadcast(T.uint32(4 * pair), lanes))
                        codes = T.bitwise_and(shifted, T.broadcast(T.uint32(0x000F000F), lanes))
                        centred = T.reinterpret(f"int16x{2 * lanes}", codes) - points
                        place = [many.few.strides.slot(group), at * (PER_WORD // 2) + pair, vector, whole]
                        T.buffer_store(decoded, T.reinterpret(f"int32x{lanes}", centred), place)

    def _first_row(self, vector):
        """The matrix's, of those that are the lanes of a vector."""
        return self.number * TOGETHER + vector * self.many.byte.lanes


@dataclass(frozen=True)
class _Tile(PanelTile):
    """Some rows of numbers times some vectors of a panel."""

    panel: _Panel
    decoded: tirx.Buffer
    single: tirx.Buffer

    def write(self):
        panel, many, few, pairs = self.panel, self.panel.many, self.panel.many.few, self.pairs
        strides, lanes, tokens = few.strides, many.byte.lanes, few.x.shape[1]
        whole = T.ramp(0, 1, lanes)
        with T.sblock("tile"):
            T.reads(*(whole_of(buffer) for buffer in (panel.words, panel.powers, self.decoded, self.single)))
            T.writes(whole_of(few.out))
            total = OrderedSums.of(strides, len(pairs), lanes)
            sums, exact = total.sums, T.sblock_alloc_buffer((len(pairs), lanes), "int32")

            def add(slot, group):
                self._prefetch(self.part * strides.slots + slot)
                self._add(sums, exact, slot, group)

            total.write(few.numbers, add)
            for at, (row, vector) in enumerate(pairs):
                begin, number = panel.number * TOGETHER + (self.side + vector) * lanes, self.first + row
                T.buffer_store(few.out, sums[at, whole], [number // tokens, number % tokens, T.ramp(begin, 1, lanes)])

    def _prefetch(self, passed):
        """Memory is asked for the next panel, while this one is multiplied."""
        panel, many, few = self.panel, self.panel.many, self.panel.many.few
        locality, first = many.byte.locality, (panel.number + 1) * TOGETHER
        lines, last = TOGETHER * many.groups * CHUNK // LINE, TOGETHER * many.groups - 1
        for line in range(ASKED):
            at = T.min(passed * ASKED + line, lines - 1) * (LINE // 4)
            T.evaluate(prefetch(few.words[first, at], locality))
        T.evaluate(prefetch(few.scales[first, T.min(passed * (LINE // 2), last)], locality))

    def _add(self, sums, exact, slot, group):
        """The products of a group."""
        panel, byte = self.panel, self.panel.many.few.byte
        lanes, whole = panel.many.byte.lanes, T.ramp(0, 1, panel.many.byte.lanes)
        for at in range(len(self.pairs)):
            T.buffer_store(exact, T.broadcast(T.int32(0), lanes), [at, whole])
        for word in range(WORDS):
            for at, (row, vector) in enumerate(self.pairs):
                codes = self.decoded[slot, word, self.side + vector, whole]
                spread = T.broadcast(panel.words[self.first + row, slot, word], lanes)
                T.buffer_store(exact, byte.pairs(exact[at, whole], codes, spread), [at, whole])
        for at, (row, vector) in enumerate(self.pairs):
            power = T.broadcast(panel.powers[self.first + row, slot], lanes)
            factor = self.single[group, self.side + vector, whole] * power
            total = fused(T.Cast(f"float32x{lanes}", exact[at, whole]), factor, sums[at, whole])
            T.buffer_store(sums, total, [at, whole])
