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

from export.processor.block_instructions import BlockInstructions
from export.processor.block_kernel import TOGETHER, Kernel
from export.processor.block_rounding import Rounding
from export.processor.block_strides import Strides

BLOCKS = {4: (32, 64, 128), 8: (16, 32, 64, 128)}
"""Columns of a block that kernels are written for, by the bits of a code."""

SHARED_OUT = 16
"""Rows from which on several threads round them: fewer are done before another thread has begun."""


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix as MatMulNBits' inputs B and scales lie in the file, without zero points.

    Attributes:
        rows: N, outputs.
        columns: K, inputs, a multiple of ``block``.
        block: columns that share a scale.
        bits: of a code, 4 or 8.
    """

    rows: int
    columns: int
    block: int
    bits: int


def unsupported(matrix: BlockMatrix) -> str:
    """Why no kernel is written for the matrix; empty where one is."""
    if matrix.bits not in BLOCKS:
        return f"codes of {matrix.bits} bits: only 4 and 8 are read"
    if matrix.block not in BLOCKS[matrix.bits]:
        return f"blocks of {matrix.block} columns with {matrix.bits} bits: only {BLOCKS[matrix.bits]} are read"
    if matrix.rows < 1 or matrix.columns < matrix.block or matrix.columns % matrix.block:
        return f"{matrix.rows} rows of {matrix.columns} columns: whole blocks of {matrix.block} are expected"
    return ""


def block_product(matrix: BlockMatrix, byte: BlockInstructions) -> tirx.PrimFunc:
    """The product of any number of rows with ``matrix``.

    Arguments of the function: x (n, K) float32, codes (N, K / block, block * bits / 8) uint8, scales (N, K / block) float16
    and out (n, N) float32. Results of a row that has an infinity or NaN are NaN; other rows are as without it. A block whose
    largest value is below 2^-120 counts as zeros.

    Raises:
        ValueError: the matrix is one that `unsupported` names.
    """
    if unsupported(matrix):
        raise ValueError(f"no product is written for {unsupported(matrix)}")
    strides = Strides(matrix, byte.fitting(matrix.columns * matrix.bits // 8))
    byte = strides.byte
    rounding = Rounding(strides)
    kernel = Kernel(strides)
    rows, columns, blocks = matrix.rows, matrix.columns, matrix.columns // matrix.block
    groups, tile = -(-rows // TOGETHER), byte.rows_at_once
    shape = strides.count, strides.vectors, byte.lanes

    @T.prim_func(s_tir=True, check_well_formed=False)
    def product(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
        T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
        n = T.int64()
        x = T.match_buffer(a, (n, columns), "float32", align=4)
        codes = T.match_buffer(b, (rows, blocks, matrix.block * matrix.bits // 8), "uint8", align=1)
        scales = T.match_buffer(c, (rows, blocks), "float16", align=2)
        out = T.match_buffer(d, (n, rows), "float32", align=4)
        numbers = T.sblock_alloc_buffer((n, *shape), "int32")
        zeros = T.sblock_alloc_buffer((n, strides.count, byte.lanes), "int32")
        factors = T.sblock_alloc_buffer((n, strides.count, byte.lanes), "float32")
        if n < SHARED_OUT:
            for row in T.serial(n):
                rounding.write(x, row, numbers, zeros, factors)
        else:
            for row in T.parallel(n):
                rounding.write(x, row, numbers, zeros, factors)
        for group in T.parallel(groups):
            for first in T.serial(n // tile):
                kernel.write(codes, scales, numbers, zeros, factors, out, group, first * tile, tile)
            kernel.write_rest(codes, scales, numbers, zeros, factors, out, group, n // tile * tile, n % tile)

    return product
