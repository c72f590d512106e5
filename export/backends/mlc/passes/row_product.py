"""An int4 matrix times rows on a processor: one as fast as the matrix can be read, many in less time than float sums take.

A row becomes fixed-point numbers, each group of 32 with a power of two of its own, so that instructions for whole numbers
multiply and add many codes at a time; a group's products are summed exactly and no weight is ever decoded to a float. With
24 bits of a group's largest value the sums are as exact as those of float32, with 16 they are off by a fraction of what
float16 rounds from the row. The products ``(code - 7) * scale`` are not rounded to the model dtype: in float16 that is one
more difference from the phone's kernel, of half a unit of each weight at most.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from export.backends.mlc.parameters import GROUP
from export.backends.mlc.passes.few_rows import FewRows
from export.backends.mlc.passes.many_rows import MANY, ManyRows
from export.processor.block_product import BlockMatrix
from export.processor.block_strides import Strides
from export.processor.byte_products import ByteProducts


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
    if len(x.shape) != 3 or not isinstance(columns, tirx.IntImm) or int(columns) % GROUP:
        return None
    made = row_product(x, words, scales, out, byte)
    kept = [buffer for buffer in root.alloc_buffers if not buffer.same_as(decoded.writes[0].source)]
    inner = made.body.block
    products = inner.body.seq if isinstance(inner.body, tirx.SeqStmt) else [inner.body]
    rest = list(root.body.seq)[2:] if isinstance(root.body, tirx.SeqStmt) else []
    block = s_tir.SBlock(
        [], [], [], "root", tirx.SeqStmt([*products, *rest]) if rest else inner.body, None, [*kept, *inner.alloc_buffers]
    )
    return function.with_body(s_tir.SBlockRealize([], function.body.predicate, block))


def row_product(x: Any, words: Any, scales: Any, out: Any, byte: ByteProducts) -> tirx.PrimFunc:
    """out (batch, tokens, rows) float32 = x (batch, tokens, columns) times words (rows, columns / 8).

    Scales are (rows, columns / 32). The function has no arguments; it works on the buffers that it is given. A row has the
    same bits among however many others.
    """
    matrix = BlockMatrix(int(words.shape[0]), int(x.shape[-1]), GROUP, 4)
    few = FewRows(Strides(matrix, byte.block), byte, x, words, scales, out)
    many = ManyRows(few)
    with IRBuilder() as builder, prim_func(s_tir=True):
        if not many.fits or (isinstance(few.numbers, tirx.IntImm) and int(few.numbers) < MANY):
            few.write()
        else:
            with T.If(few.numbers < MANY):
                with T.Then():
                    few.write()
                with T.Else():
                    many.write()
    return builder.get()
