"""An int4 matrix times rows on a processor: one as fast as the matrix can be read, many in less time than float sums take.

A row becomes fixed-point numbers, each group of 32 with a power of two of its own, so that a byte instruction multiplies and
adds codes many at a time; no weight is ever decoded. With 24 bits of a group's largest value the sums are as exact as those
of float32, with 16 they are off by a fraction of what float16 rounds from the row. The products ``(code - 7) * scale`` are
not rounded to the model dtype: in float16 that is one more difference from the phone's kernel, of half a unit of each weight
at most.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.script import tirx as T

from export.backends.mlc.blocks.linear import ZERO_POINT
from export.backends.mlc.parameters import GROUP, PER_WORD
from export.backends.mlc.passes.row_steps import PLANES, TOGETHER, FixedRows, Steps
from export.backends.mlc.passes.single_rows import SingleRows
from export.backends.mlc.passes.tiled_rows import TiledRows
from export.processor.byte_products import ByteProducts
from export.processor.vectors import Index

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
    count, width, pieces, groups = PLANES[steps.dtype], byte.width, steps.pieces, steps.groups
    top, most = 8 * count - 2, 2 ** (8 * count - 1) - 1
    written = TiledRows if byte.side_by_side else SingleRows

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
        for block in T.parallel(-(-rows // TOGETHER)):
            written(steps, FixedRows(planes, zeros, powers), words, scales, out).write(block)

    return product


def value(x: tirx.Buffer, number: Index, column: Index) -> tirx.Expr:
    """float32: of the row ``number``."""
    tokens = x.shape[1]
    return T.Cast("float32", x[number // tokens, number % tokens, column])
