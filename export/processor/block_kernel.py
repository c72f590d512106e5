"""The loops over a group of a matrix's rows, for tiles of rows of numbers: what `block_product` is made of."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import VECTORS
from export.processor.block_strides import Strides, added_up
from export.processor.vectors import FIRST, LINE, prefetch

AHEAD = 12288
"""Bytes of codes from those that are multiplied to those that are asked for."""

TOGETHER = 32
"""Rows of the matrix that lie in a core's cache while tiles of rows of numbers pass by."""


@dataclass(frozen=True)
class Kernel:
    """Writes the product of some rows of numbers with a group of the matrix's rows.

    Attributes:
        bias: a number for each of these, which is added.
    """

    strides: Strides
    bias: tirx.Buffer | None = None

    def write_rest(self, codes, scales, numbers, zeros, factors, out, group, first, count):
        """The rows behind the last tile, whose number is known when the function runs."""
        for some in range(1, self.strides.byte.rows_at_once):
            with T.If(count == some), T.Then():
                self.write(codes, scales, numbers, zeros, factors, out, group, first, some)

    def write(self, codes, scales, numbers, zeros, factors, out, group, first, some):
        """``some`` rows of numbers from ``first`` on."""
        strides, byte = self.strides, self.strides.byte
        # one row of numbers waits for memory, more for products
        side = byte.matrix_rows if some > 1 else 1
        slices = byte.slices() if some == 1 else [(0, byte)]
        lanes, rows = byte.lanes, strides.matrix.rows
        whole = T.ramp(0, 1, lanes)
        together = TOGETHER // side
        with T.serial(0, T.min(together, -(-rows // side) - group * together)) as within:  # noqa: SIM117
            with T.sblock("row"):
                T.reads(codes[:, :, :], scales[:, :], numbers[:, :, :, :], zeros[:, :, :], factors[:, :, :])
                T.writes(out[:, :])
                sums = T.sblock_alloc_buffer((side, some, lanes), "float32")
                chosen = [group * TOGETHER + within * side + at for at in range(side)]
                if rows % side:
                    # the last row is multiplied twice where there are too few
                    chosen = [T.min(row, rows - 1) for row in chosen]
                for at in range(side):
                    for number in range(some):
                        T.buffer_store(sums, T.broadcast(T.float32(0), lanes), [at, number, whole])
                kinds = _Copied if strides.copied else _InPlace
                sources = [kinds(strides, codes, scales, row) for row in chosen]
                products = [_Products(strides, part, start, numbers, zeros, factors, sums) for start, part in slices]
                with T.serial(0, unforeseen(strides.count, out.shape[0])) as stride:
                    # later rows of numbers find codes in a cache
                    with T.If(first == 0), T.Then():
                        self._prefetch(codes, scales, group, within * strides.count + stride, side)
                    for product in products:
                        for at, source in enumerate(sources):
                            product.decode(source, at, stride)
                        product.add(first, stride)
                for at, row in enumerate(chosen):
                    for number in range(some):
                        value = added_up(sums[at, number, whole], lanes)
                        value = value if self.bias is None else value + self.bias[row]
                        T.buffer_store(out, value, [first + number, row])

    def _prefetch(self, codes, scales, group, passed, side):
        """Memory is asked for what lies ahead, line after line, however rows are multiplied."""
        strides, matrix, byte = self.strides, self.strides.matrix, self.strides.byte
        each = side * matrix.columns * matrix.bits // 8 // strides.count
        begun, near = group * TOGETHER, self._near(side)
        for line in range(-(-each // LINE)):
            at = passed * each + line * LINE
            T.evaluate(prefetch(codes[begun, 0, at + AHEAD], byte.locality))
            if near:
                T.evaluate(prefetch(codes[begun, 0, at + near], FIRST))
        scale = side * (matrix.columns // matrix.block) // strides.count
        ahead = AHEAD * 8 // (matrix.bits * matrix.block)
        T.evaluate(prefetch(scales[begun, passed * scale + ahead], byte.locality))

    def _near(self, side):
        """Bytes from the codes of the first of ``side`` rows to those that are asked into the first cache; 0 for none.

        The last row's codes lie behind all of the others'. Farther than half of what is asked into the second cache they
        would not be there yet.
        """
        row, near = self.strides.matrix.columns * self.strides.matrix.bits // 8, self.strides.byte.near
        if side == 1 or not near:
            return near
        together = (side - 1) * row + near // 2
        return together if together <= AHEAD // 2 else 0


class _Products:
    """Products of a stride of some rows of the matrix with some rows of numbers, in some of their lanes.

    Args:
        byte: multiplies so many lanes.
        start: the first of them.
    """

    def __init__(self, strides, byte, start, numbers, zeros, factors, sums) -> None:
        self.strides, self.byte, self.start = strides, byte, start
        self.numbers, self.zeros, self.factors, self.sums = numbers, zeros, factors, sums
        side, some, lanes, bits = int(sums.shape[0]), int(sums.shape[1]), byte.lanes, strides.matrix.bits
        self.raised = byte.raised(bits) if some == 1 else 0
        kind = byte.sum_type(bits)
        self.kept = [T.sblock_alloc_buffer((strides.vectors, lanes), "int32") for _ in range(side)]
        self.scale = T.sblock_alloc_buffer((side, lanes), "float32")
        # where codes of odd columns stay to the left they have a sum of their own
        shape = (2 if self.raised else 1, side, some, lanes * 4 // (int(kind[3:]) // 8))
        self.exact = T.sblock_alloc_buffer(shape, kind)

    def decode(self, source, place, stride):
        """The codes of a stride of a row, and its scales by lane."""
        strides, byte = self.strides, self.byte
        column = strides.first_column(stride)
        whole = T.ramp(0, 1, byte.lanes)
        first = column // strides.sides + 4 * self.start
        read = [source.codes(first + at * strides.byte.width, byte.width) for at in range(VECTORS)]
        for at, vector in enumerate(byte.turned(read)):
            for side, decoded in enumerate(byte.decoded(vector, strides.matrix.bits, self.raised)):
                held = T.reinterpret(f"int32x{byte.lanes}", decoded)
                T.buffer_store(self.kept[place], held, [at * strides.sides + side, whole])
        count = strides.scales
        halves = source.scales(column // strides.matrix.block, count)
        if count == 1:
            spread = T.broadcast(T.Cast("float32", halves), byte.lanes)
        else:
            single = [T.Cast(f"float32x{count}", halves)] * -(-byte.lanes // count)
            spread = tirx.Shuffle(single, [strides.scale_of(self.start + at) for at in range(byte.lanes)])
        T.buffer_store(self.scale, spread, [place, whole])

    def add(self, first, stride):
        """Rows of the matrix and of numbers are taken in turns."""
        byte, bits, sums, exact = self.byte, self.strides.matrix.bits, self.sums, self.exact
        lanes, whole, here = byte.lanes, T.ramp(0, 1, byte.lanes), T.ramp(self.start, 1, byte.lanes)
        all_of = T.ramp(0, 1, int(exact.shape[-1]))
        pairs = [(at, number) for number in range(int(sums.shape[1])) for at in range(int(sums.shape[0]))]

        def begun(number):
            return self.zeros[first + number, stride, here] if self.strides.zeroed else T.broadcast(T.int32(0), lanes)

        for at, number in pairs:
            T.buffer_store(exact, byte.started(begun(number), bits), [0, at, number, all_of])
            if self.raised:
                T.buffer_store(exact, T.broadcast(T.int32(0), lanes), [1, at, number, all_of])
        for vector in range(self.strides.vectors):
            apart = vector % self.strides.sides if self.raised else 0
            for at, number in pairs:
                codes = T.reinterpret(f"uint8x{byte.width}", self.kept[at][vector, whole])
                read = T.reinterpret(f"int8x{byte.width}", self.numbers[first + number, stride, vector, here])
                total = byte.plus(exact[apart, at, number, all_of], codes, read, bits)
                T.buffer_store(exact, total, [apart, at, number, all_of])
        for at, number in pairs:
            total = byte.ended(exact[0, at, number, all_of], begun(number), bits)
            if self.raised:
                total += T.shift_right(exact[1, at, number, all_of], T.broadcast(T.int32(self.raised), lanes))
            factor = self.scale[at, whole] * self.factors[first + number, stride, here]
            product = T.Cast(f"float32x{lanes}", total) * factor
            T.buffer_store(sums, sums[at, number, here] + product, [at, number, here])


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


def unforeseen(count, rows):
    """``count``, unknown to the compiler, which would unroll short loops and keep all numbers on the stack."""
    return T.bitwise_or(T.Cast("int64", count), T.shift_right(T.Cast("int64", rows), T.int64(30)))
