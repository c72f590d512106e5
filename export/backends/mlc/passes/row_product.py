"""An int4 matrix times rows on a processor: one as fast as the matrix can be read, many in less time than float sums take.

A row becomes fixed-point numbers, each group of 32 with a power of two of its own, so that a byte instruction multiplies and
adds codes many at a time; no weight is ever decoded. With 24 bits of a group's largest value the sums are as exact as those
of float32, with 16 they are off by a fraction of what float16 rounds from the row. The products ``(code - 7) * scale`` are
not rounded to the model dtype: in float16 that is one more difference from the phone's kernel, of half a unit of each weight
at most.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import partial

from tvm import s_tir, tirx
from tvm.script import tirx as T

from export.backends.mlc.blocks.linear import ZERO_POINT
from export.backends.mlc.parameters import GROUP, PER_WORD
from export.processor.byte_products import ByteProducts, Plane, Vnni
from export.backends.mlc.passes.tiled_rows import TiledRows
from export.processor.online_softmax import tree_reduce
from export.processor.vectors import LINE, Index, ask

PLANES = {"float16": 2, "float32": 3}
"""Bytes of a fixed-point number by the model dtype."""

AHEAD = 4608
"""Bytes of codes from those that are multiplied to those that are asked for: what memory answers in the time of two rows."""

FIRST = 3
"""The cache that memory is asked into."""

TOGETHER = 32
"""Rows of the matrix that lie in a core's cache while rows of numbers pass by, each of which lies in its fastest one."""

LEAST_EXPONENT, NOT_FINITE = 32, 255
"""Biased exponents of float32: smaller largest values are taken for 2^-95; infinity and NaN."""


def with_row_product(function: tirx.PrimFunc, byte: ByteProducts) -> tirx.PrimFunc | None:
    """The function with the blocks that decode and multiply replaced; None where it is no such product.

    Args:
        function: a product that export.backends.mlc.blocks.linear writes, with what was fused behind it.
    """
    schedule = s_tir.Schedule(function)
    root = schedule.get(schedule.get_sblock("root"))
    names = [schedule.get(block).name_hint for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    if names[:2] != ["dequantise", "matmul"]:
        return None
    decoded, product = (schedule.get(schedule.get_sblock(name)) for name in names[:2])
    x, (words, scales), out = product.reads[0].source, (part.source for part in decoded.reads), product.writes[0].source
    columns = x.shape[-1]
    if len(x.shape) != 3 or not isinstance(columns, tirx.IntImm):
        return None
    byte = byte.fitting(int(columns))
    if int(columns) % byte.elements:
        return None
    made = row_product(x, words, scales, out, byte)
    kept = [buffer for buffer in root.alloc_buffers if not buffer.same_as(decoded.writes[0].source)]
    inner = made.body.block
    rest = list(root.body.seq)[2:] if isinstance(root.body, tirx.SeqStmt) else []
    block = s_tir.SBlock([], [], [], "root", tirx.SeqStmt([*inner.body.seq, *rest]), None, [*kept, *inner.alloc_buffers])
    return function.with_body(s_tir.SBlockRealize([], function.body.predicate, block))


@dataclass(frozen=True)
class Steps:
    """How a row is taken piece by piece, a piece being what one vector of codes holds and a step about a line of codes."""

    byte: ByteProducts
    columns: int
    dtype: str

    @property
    def pieces(self) -> int:
        return self.columns // self.byte.elements

    @property
    def groups(self) -> int:
        """Of one piece."""
        return self.byte.elements // GROUP

    @property
    def step(self) -> int:
        """Pieces of one step, whose scales are read at once."""
        line = LINE // self.byte.width
        return next(number for number in (2 * line, line, 2, 1) if self.pieces % number == 0)

    @property
    def lines(self) -> range:
        """The pieces of a step that begin a line of codes."""
        return range(0, self.step, LINE // self.byte.width)

    @property
    def between_scales(self) -> int:
        """Steps that one line of scales serves."""
        return max(1, LINE // (self.step * self.groups * (4 if self.dtype == "float32" else 2)))

    def ask_codes(self, words: tirx.Buffer, row: Index, first: Index) -> None:
        """Write what asks memory for the codes that lie ahead of a step."""
        for line in range(len(self.lines)):
            T.evaluate(ask(words[row, first * self.byte.words + (line * LINE + AHEAD) // 4], FIRST))

    def factors(self, scales: tirx.Buffer, powers: tirx.Buffer, number: Index, row: Index, first: Index) -> tirx.Expr:
        """The scales of a step's groups times their powers of two, of which no product is rounded."""
        together = self.step * self.groups
        at = first * self.groups if together == 1 else T.ramp(first * self.groups, 1, together)
        return T.Cast("float32" if together == 1 else f"float32x{together}", scales[row, at]) * powers[number, at]

    def factor_of(self, factors: tirx.Expr, first: int, lanes: int) -> tirx.Expr:
        """The factors of so many words of a step from the word ``first`` on."""
        together = self.step * self.groups
        if together == 1:
            return T.broadcast(factors, lanes)
        chosen = [(first + lane) * PER_WORD // GROUP for lane in range(lanes)]
        return tirx.Shuffle([factors] * max(1, lanes // together), chosen)

    def added(
        self,
        total: tirx.Expr,
        factors: tirx.Expr,
        words: tirx.Buffer,
        planes: tirx.Buffer,
        zeros: tirx.Buffer,
        number: Index,
        row: Index,
        first: Index,
    ) -> tirx.Expr:
        """float32 sums by lane: ``total`` and the products of one step of the row ``number`` with the matrix's ``row``."""
        lanes = self.byte.words
        for place in range(self.step):
            piece = first + place
            at, plane = T.ramp(piece * lanes, 1, lanes), partial(self.plane, planes, number, piece)
            exact = self.exact(words[row, at], plane) + zeros[number, at]
            total = total + T.Cast(f"float32x{lanes}", exact) * self.factor_of(factors, place * lanes, lanes)
        return total

    def exact(self, words: tirx.Expr, plane: Plane) -> tirx.Expr:
        """int32 by word: the products of a piece's codes with its numbers, of which `plane` gives the bytes."""
        return self.byte.sums(words, plane, PLANES[self.dtype])

    def plane(self, planes: tirx.Buffer, number: Index, piece: Index, which: int, side: int) -> tirx.Expr:
        return planes[number, piece, which, side, T.ramp(0, 1, self.byte.width)]


def sum_of_lanes(sums: tirx.Buffer, lanes: int, *row: int) -> tirx.Expr:
    return tree_reduce([sums[(*row, lane)] for lane in range(lanes)], operator.add)


def summed(fixed: tirx.Buffer, word: Index) -> tirx.Expr:
    """The numbers that one word's codes are multiplied with, added up."""
    total = fixed[word * PER_WORD]
    for place in range(1, PER_WORD):
        total = total + fixed[word * PER_WORD + place]
    return total


def row_product(
    x: tirx.Buffer, words: tirx.Buffer, scales: tirx.Buffer, out: tirx.Buffer, byte: ByteProducts
) -> tirx.PrimFunc:
    """out (batch, tokens, rows) float32 = x (batch, tokens, columns) times words (rows, columns / 8).

    Scales are (rows, columns / 32). The function has no arguments; it works on the buffers that it is given.
    """
    columns, rows = int(x.shape[-1]), int(words.shape[0])
    batch, tokens = x.shape[0], x.shape[1]
    numbers = batch * tokens
    steps = Steps(byte, columns, str(x.dtype))
    count, width, lanes = PLANES[steps.dtype], byte.width, byte.words
    pieces, step, groups = steps.pieces, steps.step, steps.groups
    top, most = 8 * count - 2, 2 ** (8 * count - 1) - 1
    tiled = isinstance(byte, Vnni)
    all_of = T.ramp(0, 1, step * groups) if step * groups > 1 else 0

    # what is multiplied is not its own: the body alone is used
    @T.prim_func(s_tir=True, check_well_formed=False)
    def product():
        planes = T.sblock_alloc_buffer((numbers, pieces, count, 2, width), "int8")
        zeros = T.sblock_alloc_buffer((numbers, columns // PER_WORD), "int32")
        powers = T.sblock_alloc_buffer((numbers, columns // GROUP), "float32")
        for number in T.parallel(numbers):
            with T.sblock("fixed_point"):
                T.reads(x[0:batch, 0:tokens, 0:columns])
                T.writes(
                    planes[number, 0:pieces, 0:count, 0:2, 0:width],
                    zeros[number, 0 : columns // PER_WORD],
                    powers[number, 0 : columns // GROUP],
                )
                exponent = T.sblock_alloc_buffer((1,), "int32")
                factor = T.sblock_alloc_buffer((1,), "float32")
                fixed = T.sblock_alloc_buffer((GROUP,), "int32")
                for group in T.serial(columns // GROUP):
                    # floats without their signs are in the order of their bits
                    exponent[0] = LEAST_EXPONENT << 23
                    for i in T.serial(GROUP):
                        exponent[0] = T.max(
                            exponent[0],
                            T.bitwise_and(T.reinterpret("int32", value(x, number, group * GROUP + i)), 0x7FFFFFFF),
                        )
                    exponent[0] = T.shift_right(exponent[0], 23)
                    factor[0] = T.reinterpret("float32", T.shift_left(254 + top - exponent[0], 23))
                    for i in T.serial(GROUP):
                        fixed[i] = T.min(T.Cast("int32", T.nearbyint(value(x, number, group * GROUP + i) * factor[0])), most)
                    powers[number, group] = T.if_then_else(
                        exponent[0] == NOT_FINITE,
                        T.float32(float("nan")),
                        T.reinterpret("float32", T.shift_left(exponent[0] - top, 23)),
                    )
                    for i in T.serial(GROUP // PER_WORD):
                        zeros[number, group * (GROUP // PER_WORD) + i] = -ZERO_POINT * summed(fixed, i)
                    for which in T.unroll(count):
                        for side, i in T.grid(2, GROUP // 2):
                            planes[number, group // groups, which, side, group % groups * (GROUP // 2) + i] = T.Cast(
                                "int8", T.shift_right(fixed[2 * i + side], 8 * which)
                            )
        if tiled:
            for block in T.parallel(-(-rows // TOGETHER)):
                TiledRows(steps, planes, zeros, powers, words, scales, out).write(block)
        else:
          for block in T.parallel(-(-rows // TOGETHER)):
            for number, within in T.grid(numbers, T.min(TOGETHER, rows - block * TOGETHER)):
                with T.sblock("row"):
                    row = T.axis.spatial(rows, block * TOGETHER + within)
                    T.reads(
                        planes[number, 0:pieces, 0:count, 0:2, 0:width],
                        zeros[number, 0 : columns // PER_WORD],
                        powers[number, 0 : columns // GROUP],
                        words[row, 0 : columns // PER_WORD],
                        scales[row, 0 : columns // GROUP],
                    )
                    T.writes(out[0:batch, 0:tokens, row])
                    sums = T.sblock_alloc_buffer((lanes,), "float32")
                    factors = T.sblock_alloc_buffer((step * groups,), "float32")
                    sums[T.ramp(0, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                    for at in T.serial(pieces // step):
                        factors[all_of] = steps.factors(scales, powers, number, row, at * step)
                        sums[T.ramp(0, 1, lanes)] = steps.added(
                            sums[T.ramp(0, 1, lanes)], factors[all_of], words, planes, zeros, number, row, at * step
                        )
                        steps.ask_codes(words, row, at * step)
                        if at % steps.between_scales == 0:
                            T.evaluate(ask(scales[row, at * step * groups + AHEAD * 2 // GROUP], FIRST))
                    out[number // tokens, number % tokens, row] = sum_of_lanes(sums, lanes)

    return product


def value(x: tirx.Buffer, number: Index, column: Index) -> tirx.Expr:
    """float32: of the row ``number``."""
    tokens = x.shape[1]
    return T.Cast("float32", x[number // tokens, number % tokens, column])
