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
<<<<<<< HEAD


@dataclass(frozen=True)
class _Kernel:
    """Writes the product of some rows of numbers with a group of the matrix's rows."""

    strides: Strides

    def write_rest(self, codes, scales, numbers, zeros, factors, out, group, first, count):
        """The rows behind the last tile, whose number is known when the function runs."""
        for some in range(1, self.strides.byte.rows_at_once):
            with T.If(count == some), T.Then():
                self.write(codes, scales, numbers, zeros, factors, out, group, first, some)

    def write(self, codes, scales, numbers, zeros, factors, out, group, first, some):
        """``some`` rows of numbers from ``first`` on."""
        strides, byte = self.strides, self.strides.byte
        lanes, side, rows = byte.lanes, byte.matrix_rows, strides.matrix.rows
        whole = T.ramp(0, 1, lanes)
        with T.serial(0, T.min(TOGETHER // side, -(-rows // side) - group * (TOGETHER // side))) as within:
            with T.sblock("row"):
                T.reads(codes[:, :, :], scales[:, :], numbers[:, :, :, :], zeros[:, :, :], factors[:, :, :])
                T.writes(out[:, :])
                sums = T.sblock_alloc_buffer((side, some, lanes), "float32")
                kept = [T.sblock_alloc_buffer((strides.vectors, lanes), "int32") for _ in range(side)]
                scale = T.sblock_alloc_buffer((side, lanes), "float32")
                kind = byte.sum_type(strides.matrix.bits)
                exact = T.sblock_alloc_buffer((side, some, lanes * 4 // (int(kind[3:]) // 8)), kind)
                chosen = [group * TOGETHER + within * side + at for at in range(side)]
                if rows % side:
                    # the last row is multiplied twice where there are too few
                    chosen = [T.min(row, rows - 1) for row in chosen]
                for at in range(side):
                    for number in range(some):
                        T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [at, number, whole])
                kinds = _Copied if strides.copied else _InPlace
                sources = [kinds(strides, codes, scales, row) for row in chosen]
                with T.serial(0, strides.count) as passed:
                    self._ask(codes, scales, group, within * strides.count + passed)
                    stride = passed
                    if some * strides.row_bytes > NEAR:
                        # there and back, so that what was read last is read first
                        stride = T.Select(within % 2 == 0, passed, strides.count - 1 - passed)
                    for at, (row, source) in enumerate(zip(chosen, sources, strict=True)):
                        self._decode(source, kept[at], scale, at, stride)
                    self._add(kept, scale, numbers, zeros, factors, exact, sums, first, stride)
                for at, row in enumerate(chosen):
                    for number in range(some):
                        T.buffer_store(out, added_up(sums[at, number, whole], lanes), [first + number, row])

    def _ask(self, codes, scales, group, passed):
        """Memory is asked for what lies ahead, line after line, however rows are multiplied."""
        strides, matrix, side = self.strides, self.strides.matrix, self.strides.byte.matrix_rows
        each = side * matrix.columns * matrix.bits // 8 // strides.count
        for line in range(-(-each // LINE)):
            T.evaluate(ask(codes[group * TOGETHER, 0, passed * each + line * LINE + AHEAD]))
        scale = side * (matrix.columns // matrix.block) // strides.count
        T.evaluate(ask(scales[group * TOGETHER, passed * scale + AHEAD * 8 // (matrix.bits * matrix.block)]))

    def _decode(self, source, kept, scale, place, stride):
        """The codes of a stride, and its scales by lane."""
        strides, byte = self.strides, self.strides.byte
        column = strides.first_column(stride)
        whole = T.ramp(0, 1, byte.lanes)
        read = [source.codes(column // strides.sides + at * byte.width, byte.width) for at in range(VECTORS)]
        for at, vector in enumerate(byte.turned(read)):
            for side, decoded in enumerate(byte.decoded(vector, strides.matrix.bits)):
                T.buffer_store(kept, T.reinterpret(f"int32x{byte.lanes}", decoded), [at * strides.sides + side, whole])
        count = strides.scales
        halves = source.scales(column // strides.matrix.block, count)
        if count == 1:
            spread = T.broadcast(T.Cast("float32", halves), byte.lanes)
        else:
            single = [T.Cast(f"float32x{count}", halves)] * (byte.lanes // count)
            spread = tirx.Shuffle(single, [strides.scale_of(at) for at in range(byte.lanes)])
        T.buffer_store(scale, spread, [place, whole])

    def _add(self, kept, scale, numbers, zeros, factors, exact, sums, first, stride):
        """The products of a stride of some rows of the matrix with some rows of numbers, taken in turns."""
        strides, byte, bits = self.strides, self.strides.byte, self.strides.matrix.bits
        lanes, whole = byte.lanes, T.ramp(0, 1, byte.lanes)
        all_of = T.ramp(0, 1, int(exact.shape[-1]))
        signed = bits == 8 and byte.signed_codes(8)
        pairs = [(at, number) for number in range(int(sums.shape[1])) for at in range(int(sums.shape[0]))]
        start = lambda number: T.broadcast(T.int32(0), lanes) if signed else zeros[first + number, stride, whole]  # noqa: E731
        for at, number in pairs:
            T.buffer_store(exact, byte.started(start(number), bits), [at, number, all_of])
        for vector in range(strides.vectors):
            for at, number in pairs:
                codes = T.reinterpret(f"uint8x{byte.width}", kept[at][vector, whole])
                read = T.reinterpret(f"int8x{byte.width}", numbers[first + number, stride, vector, whole])
                T.buffer_store(exact, byte.plus(exact[at, number, all_of], codes, read, bits), [at, number, all_of])
        for at, number in pairs:
            product = T.Cast(f"float32x{lanes}", byte.ended(exact[at, number, all_of], start(number), bits))
            factor = scale[at, whole] * factors[first + number, stride, whole]
            T.buffer_store(sums, sums[at, number, whole] + product * factor, [at, number, whole])


@dataclass(frozen=True)
class _InPlace:
    """Codes and scales of a row where they lie."""

    strides: Strides
    codes_buffer: tirx.Buffer
    scales_buffer: tirx.Buffer
    row: tirx.Expr

    def codes(self, first, count):
        return self.codes_buffer[self.row, 0, T.ramp(first, 1, count)]

    def scales(self, first, count):
        return self.scales_buffer[self.row, T.ramp(first, 1, count) if count > 1 else first]


class _Copied:
    """Codes and scales of a row shorter than a stride, with zeros behind them."""

    def __init__(self, strides: Strides, codes: tirx.Buffer, scales: tirx.Buffer, row: tirx.Expr) -> None:
        size, count = VECTORS * strides.byte.width, strides.scales
        blocks, block_bytes = (int(size) for size in codes.shape[1:])
        self.codes_buffer = T.sblock_alloc_buffer((size,), "uint8")
        self.scales_buffer = T.sblock_alloc_buffer((count,), "float16")
        T.buffer_store(self.codes_buffer, T.broadcast(T.uint8(0), size), [T.ramp(0, 1, size)])
        T.buffer_store(self.scales_buffer, T.broadcast(T.float16(0), count), [T.ramp(0, 1, count)])
        with T.grid(blocks, block_bytes) as (block, at):
            T.buffer_store(self.codes_buffer, codes[row, block, at], [block * block_bytes + at])
        with T.serial(0, blocks) as block:
            T.buffer_store(self.scales_buffer, scales[row, block], [block])

    def codes(self, first, count):
        return self.codes_buffer[T.ramp(first, 1, count)]

    def scales(self, first, count):
        return self.scales_buffer[T.ramp(first, 1, count) if count > 1 else first]


def ask(element):
    """Memory is asked for what lies there; an address outside is of no consequence."""
    address = T.call_intrin("uint64", "tirx.address_of", element)
    return T.call_llvm_intrin("void", "llvm.prefetch.p0", address, T.int32(0), T.int32(HINT), T.int32(1))


def added_up(vector, lanes):
    """The sum of the lanes, halves first."""
    while lanes > 1:
        lanes //= 2
        halves = [[*range(first, first + lanes)] for first in (0, lanes)]
        vector = tirx.Shuffle([vector], halves[0]) + tirx.Shuffle([vector], halves[1])
    return vector
=======
>>>>>>> rows
