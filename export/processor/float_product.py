"""Rows of float32 times a matrix of MatMulNBits whose inputs are not rounded, as those of adapters: 8 bits a code.

A code less 128, times its block's float16 scale, is a float32 exactly, so that the numbers are those of ONNX Runtime's
operator with accuracy_level 0 but for the order of sums (microsoft/onnxruntime, onnxruntime/contrib_ops/cpu/quantization/
matmul_nbits.cc). Blocks of columns in which all rows hold zeros are not read; nor are rows of the matrix whose weight is
zero.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.block_instructions import BlockInstructions
from export.processor.block_product import BLOCKS, SHARED_OUT, BlockMatrix
from export.processor.float_panels import FloatPanels
from export.processor.float_rows import FloatRows, Outputs
from export.processor.kernel_frame import kernel
from export.processor.online_softmax import tree_reduce
from export.processor.row_kernels import for_rows
from export.processor.vectors import span, splat

MANY = 12
"""Rows from which on the matrix is decoded to memory once for many of them."""

BITS = 8
"""Of a code."""


def unsupported(matrix: BlockMatrix) -> str:
    """Why no kernel is written for the matrix; empty where one is."""
    if matrix.bits != BITS:
        return f"codes of {matrix.bits} bits for inputs that are not rounded: only {BITS} are read"
    if matrix.block not in BLOCKS[BITS]:
        return f"blocks of {matrix.block} columns for inputs that are not rounded: only {BLOCKS[BITS]} are read"
    if matrix.rows < 1 or matrix.columns < 1:
        return f"{matrix.rows} rows of {matrix.columns} columns: at least one is expected"
    return ""


@dataclass(frozen=True)
class Columns:
    """Columns ``start`` to ``start + N`` of rows of ``width`` numbers, to which a product is added."""

    width: int
    start: int


def float_product(
    matrix: BlockMatrix, byte: BlockInstructions, weights: int = 0, into: Columns | None = None
) -> tirx.PrimFunc:
    """The product of any number of rows with ``matrix``.

    Args:
        weights: of channels: where there are any, output i is multiplied by number i % weights of them. N is a multiple.
        into: where the product is added; None where it is written.

    Arguments of the function: x (n, K) float32, codes (N, blocks, block) uint8, scales (N, blocks) float16, where there are
    weights float32 (weights,), and out float32 (n, N), or (n, ``into.width``), which is changed. A row has the same bits
    among however many others.

    Raises:
        ValueError: the matrix is one that `unsupported` names, or weights or columns do not fit it.
    """
    misfit = (weights and matrix.rows % weights) or (into and into.start + matrix.rows > into.width)
    if unsupported(matrix) or misfit:
        raise ValueError(f"no product is written for {unsupported(matrix) or f'{weights} weights, or into {into}'}")
    with kernel(noalias=True) as builder:
        names = ["x", "codes", "scales", *(["weights"] if weights else []), "out"]
        given = {name: arg(name, T.handle()) for name in names}
        n = T.int64()
        x = T.match_buffer(given["x"], (n, matrix.columns), "float32", align=4)
        codes = T.match_buffer(given["codes"], (matrix.rows, matrix.blocks, matrix.block), "uint8", align=1)
        scales = T.match_buffer(given["scales"], (matrix.rows, matrix.blocks), "float16", align=2)
        factors = T.match_buffer(given["weights"], (weights,), "float32", align=4) if weights else None
        out = T.match_buffer(given["out"], (n, into.width if into else matrix.rows), "float32", align=4)
        outputs = Outputs(out, into.start if into else None, factors)
        panels = FloatPanels(matrix, byte.lanes, outputs)
        rows = FloatRows(matrix, byte.lanes, outputs, byte.locality)
        with T.sblock("product"):
            T.reads()
            T.writes()
            # panels take rows by tiles, and drop what comes of those behind the last
            padded = T.Select(n < MANY, n, -(-n // panels.numbers) * panels.numbers)
            held = T.sblock_alloc_buffer((padded, matrix.blocks * matrix.block), "float32")
            index = T.sblock_alloc_buffer((matrix.blocks,), "int32")
            count = T.sblock_alloc_buffer((1,), "int32")
            _Input(matrix, byte.lanes, x, n).write(held, index, count, padded)
            with T.If(n < MANY):
                with T.Then():
                    rows.write(codes, scales, held, index, count, n)
                with T.Else():
                    panels.write(codes, scales, held, index, count, n)
    return builder.get()


@dataclass(frozen=True)
class _Input:
    """Rows of numbers, of which blocks that hold zeros alone are left out."""

    matrix: BlockMatrix
    lanes: int
    x: tirx.Buffer
    n: tirx.Expr

    def write(self, held, index, count, padded):
        """The blocks that are left, of every row side by side, and zeros in rows behind the last."""
        T.buffer_store(count, T.int32(0), [0])
        with T.serial(0, self.matrix.blocks) as block, T.sblock("block"):
            T.reads()
            T.writes()
            found = T.sblock_alloc_buffer((1,), "int32")
            T.buffer_store(found, T.int32(0), [0])
            with T.serial(0, self.n) as row, T.If(found[0] == 0), T.Then():
                self._find(row, block, found)
            with T.If(found[0] != 0), T.Then():
                T.buffer_store(index, T.Cast("int32", block), [count[0]])
                T.buffer_store(count, count[0] + 1, [0])
        for_rows(self.n, SHARED_OUT, lambda row: self._copy(row, held, index, count))
        width = T.Cast("int64", count[0]) * (self.matrix.block // self.lanes)
        with T.grid(padded - self.n, width) as (behind, at):
            T.buffer_store(held, splat(0.0, self.lanes), [self.n + behind, span(at * self.lanes, self.lanes)])

    def _find(self, row, block, found):
        """Whether a block of a row holds anything but zeros."""
        lanes, (whole, left) = self.lanes, divmod(self.matrix.columns, self.matrix.block)

        def bits(first, many):
            kind, mask = "int32", T.int32(0x7FFFFFFF)
            if many > 1:
                kind, mask = f"{kind}x{many}", T.broadcast(mask, many)
            return T.bitwise_and(T.reinterpret(kind, self.x[row, span(first, many)]), mask)

        def all_of():
            vector = bits(block * self.matrix.block, lanes)
            for at in range(lanes, self.matrix.block, lanes):
                vector = T.bitwise_or(vector, bits(block * self.matrix.block + at, lanes))
            any_of = T.sblock_alloc_buffer((lanes,), "int32")
            T.buffer_store(any_of, vector, [span(0, lanes)])
            T.buffer_store(found, tree_reduce([any_of[lane] for lane in range(lanes)], T.bitwise_or), [0])

        def some():
            with T.serial(0, left) as at:
                T.buffer_store(found, T.bitwise_or(found[0], bits(whole * self.matrix.block + at, 1)), [0])

        with T.sblock("find"):
            T.reads()
            T.writes()
            self._of_block(block, all_of, some)

    def _copy(self, row, held, index, count):
        block, lanes, (whole, left) = self.matrix.block, self.lanes, divmod(self.matrix.columns, self.matrix.block)
        with T.serial(0, T.Cast("int64", count[0])) as number:
            read = T.Cast("int64", index[number])

            def all_of():
                for at in range(0, block, lanes):
                    value = self.x[row, span(read * block + at, lanes)]
                    T.buffer_store(held, value, [row, span(number * block + at, lanes)])

            def some():
                for at in range(0, block, lanes):
                    T.buffer_store(held, splat(0.0, lanes), [row, span(number * block + at, lanes)])
                with T.serial(0, left) as at:
                    T.buffer_store(held, self.x[row, whole * block + at], [row, number * block + at])

            self._of_block(read, all_of, some)

    def _of_block(self, block, all_of, some):
        """What is written of a block that is whole, or of the last one, which may not be."""
        whole, left = divmod(self.matrix.columns, self.matrix.block)
        if not left:
            all_of()
        elif not whole:
            some()
        else:
            with T.If(block < whole):
                with T.Then():
                    all_of()
                with T.Else():
                    some()
