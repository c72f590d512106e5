"""Rows times a matrix of MatMulNBits, whose codes and fp16 scales are read as they lie in the ONNX file.

The numbers are those of ONNX Runtime's operator with accuracy_level 4 on a processor: a block of a row becomes int8 with the
scale max|x| / 127, products with codes less their zero point are summed exactly for each block, and blocks are added in
float32 (microsoft/onnxruntime, onnxruntime/core/mlas/lib/sqnbitgemm*). Blocks are added in an order of their own.
"""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.block_instructions import BlockInstructions
from export.processor.block_kernel import TOGETHER, Kernel
from export.processor.block_panels import MANY, Panels
from export.processor.block_rounding import Rounding
from export.processor.block_strides import Strides
from export.processor.kernel_frame import kernel
from export.processor.row_kernels import for_rows, gate_row

BLOCKS = {4: (32, 64, 128), 8: (16, 32, 64, 128)}
"""Columns of a block that kernels are written for, by the bits of a code."""

SHARED_OUT = 16
"""Rows from which on several threads round them: fewer are done before another thread has begun."""


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix as MatMulNBits' inputs B and scales lie in the file, without zero points.

    Attributes:
        rows: N, outputs.
        columns: K, inputs; of a product that rounds them, a multiple of ``block``. Else the last block may be filled up.
        block: columns that share a scale.
        bits: of a code, 4 or 8.
    """

    rows: int
    columns: int
    block: int
    bits: int

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.columns // self.block)


def unsupported(matrix: BlockMatrix) -> str:
    """Why no kernel is written for the matrix; empty where one is."""
    if matrix.bits not in BLOCKS:
        return f"codes of {matrix.bits} bits: only 4 and 8 are read"
    if matrix.block not in BLOCKS[matrix.bits]:
        return f"blocks of {matrix.block} columns with {matrix.bits} bits: only {BLOCKS[matrix.bits]} are read"
    if matrix.rows < 1 or matrix.columns < matrix.block or matrix.columns % matrix.block:
        return f"{matrix.rows} rows of {matrix.columns} columns: whole blocks of {matrix.block} are expected"
    return ""


def gates(matrix: BlockMatrix, byte: BlockInstructions) -> bool:
    """Whether `block_product` writes a product whose first half gates the second."""
    return not unsupported(matrix) and _panels(matrix, byte, gated=True).fits


def _panels(matrix: BlockMatrix, byte: BlockInstructions, gated: bool) -> Panels:
    return Panels(Strides(matrix, byte.fitting(matrix.columns * matrix.bits // 8)), byte, gated)


def block_product(matrix: BlockMatrix, byte: BlockInstructions, gated: bool = False, biased: bool = False) -> tirx.PrimFunc:
    """The product of any number of rows with ``matrix``.

    Args:
        gated: ``out`` (n, N / 2) is silu of the first half of each row of the product, times the second half: what
            `row_kernels.gate` makes of it. Of many rows the product itself is never in memory. `gates` says where.
        biased: a number for each row of the matrix is added, not with ``gated``.

    Arguments of the function: x (n, K) float32, codes (N, K / block, block * bits / 8) uint8, scales (N, K / block) float16,
    bias (N,) float32 where ``biased``, and out (n, N) float32. Results of a row that has an infinity or NaN are NaN; other
    rows are as without it. A block whose largest value is below 2^-120 counts as zeros. A row has the same bits among
    however many others.

    Raises:
        ValueError: the matrix is one that `unsupported` names.
    """
    assert not (gated and biased), "a gate comes before a bias"
    if unsupported(matrix):
        raise ValueError(f"no product is written for {unsupported(matrix)}")
    panels = _panels(matrix, byte, gated)
    if gated and not panels.fits:
        raise ValueError(f"no product of {matrix} gates itself")
    few = _Few(panels.strides, gated)
    with kernel(noalias=True) as builder:
        given = {name: arg(name, T.handle()) for name in ("x", "codes", "scales", *["bias"] * biased, "out")}
        n = T.int64()
        blocks, bytes_ = matrix.blocks, matrix.block * matrix.bits // 8
        x = T.match_buffer(given["x"], (n, matrix.columns), "float32", align=4)
        codes = T.match_buffer(given["codes"], (matrix.rows, blocks, bytes_), "uint8", align=1)
        scales = T.match_buffer(given["scales"], (matrix.rows, blocks), "float16", align=2)
        bias = T.match_buffer(given["bias"], (matrix.rows,), "float32", align=4) if biased else None
        out = T.match_buffer(given["out"], (n, matrix.rows // 2 if gated else matrix.rows), "float32", align=4)
        if panels.fits:
            with T.If(n < MANY):
                with T.Then():
                    few.write(x, codes, scales, bias, out, n)
                with T.Else():
                    panels.write(x, codes, scales, bias, out, n)
        else:
            few.write(x, codes, scales, bias, out, n)
    return builder.get()


@dataclass(frozen=True)
class _Few:
    """Writes the product of rows that are multiplied with each row of the matrix as it is decoded."""

    strides: Strides
    gated: bool

    def write(self, x, codes, scales, bias, out, n):
        if not self.gated:
            self._write(x, codes, scales, bias, out, n)
            return
        with T.sblock("gated"):
            T.reads()
            T.writes()
            product = T.sblock_alloc_buffer((n, self.strides.matrix.rows), "float32")
            self._write(x, codes, scales, bias, product, n)
            with T.serial(0, n) as number, T.sblock("gate"):
                T.reads()
                T.writes()
                gate_row(number, product, out)

    def _write(self, x, codes, scales, bias, out, n):
        strides, byte, rows = self.strides, self.strides.byte, self.strides.matrix.rows
        rounding, product, tile = Rounding(strides), Kernel(strides, bias), byte.rows_at_once
        with T.sblock("few"):
            T.reads()
            T.writes()
            numbers = T.sblock_alloc_buffer((n, strides.count, strides.vectors, byte.lanes), "int32")
            zeros = T.sblock_alloc_buffer((n, strides.count, byte.lanes), "int32")
            factors = T.sblock_alloc_buffer((n, strides.count, byte.lanes), "float32")
            rounded = numbers, zeros, factors
            for_rows(n, SHARED_OUT, lambda row: rounding.write(x, row, *rounded))
            with T.parallel(0, -(-rows // TOGETHER)) as group:
                with T.serial(0, n // tile) as first:
                    product.write(codes, scales, *rounded, out, group, first * tile, tile)
                product.write_rest(codes, scales, *rounded, out, group, n // tile * tile, n % tile)
