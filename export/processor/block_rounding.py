"""Rows of numbers as int8 with a scale for each block, in the order in which the product takes them."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import VECTORS
from export.processor.block_strides import Strides

LARGEST = 127
"""Of the numbers."""

WIDE = 16
"""Numbers that are compared at once; a narrower processor takes several vectors for them."""

LEAST = 2.0**-120
"""Largest values below this are taken for zero: 127 over a smaller one is no float32."""


@dataclass(frozen=True)
class Rounding:
    """Writes the rounding of one row.

    What is written, by (row, stride): numbers (vectors, lanes), four int8 in each int32, in the order of the decoded codes;
    zeros (lanes) int32, minus the zero point times what a lane's numbers add up to; factors (lanes) float32, the scale of
    the block that a lane's chunk lies in.
    """

    strides: Strides

    def write(self, x, row, numbers, zeros, factors):
        strides = self.strides
        matrix, byte = strides.matrix, strides.byte
        whole = T.ramp(0, 1, byte.lanes)
        with T.sblock("rounding"):
            T.reads(x[row, 0 : matrix.columns])
            T.writes(numbers[row, :, :, :], zeros[row, :, :], factors[row, :, :])
            largest = T.sblock_alloc_buffer((WIDE,), "float32")
            scale = T.sblock_alloc_buffer((3,), "float32")
            words = T.sblock_alloc_buffer((strides.vectors,), "int32")
            if strides.rest:
                for at in range(strides.vectors):
                    T.buffer_store(numbers, T.broadcast(T.int32(0), byte.lanes), [row, strides.count - 1, at, whole])
                T.buffer_store(factors, T.broadcast(T.float32(0), byte.lanes), [row, strides.count - 1, whole])
            with T.serial(0, matrix.columns // matrix.block) as block:
                self._scale(x, row, block, largest, scale)
                for part in range(matrix.block // strides.chunk):
                    chunk = block * (matrix.block // strides.chunk) + part
                    self._chunk(x, row, chunk, scale, words, numbers, factors)
            if not (matrix.bits == 8 and byte.signed_codes(8)):
                with T.serial(0, strides.count) as stride:
                    T.buffer_store(zeros, self._zeros(numbers, row, stride), [row, stride, whole])

    def _scale(self, x, row, block, largest, scale):
        """scale: what numbers of the block are multiplied with, and what products are."""
        size, every = self.strides.matrix.block, T.ramp(0, 1, WIDE)
        for at in range(size // WIDE):
            bits = T.reinterpret(f"int32x{WIDE}", x[row, T.ramp(block * size + at * WIDE, 1, WIDE)])
            bits = T.bitwise_and(bits, T.broadcast(T.int32(0x7FFFFFFF), WIDE))
            # floats without their signs are in the order of their bits, NaN above all
            if at:
                bits = T.max(T.reinterpret(f"int32x{WIDE}", largest[every]), bits)
            T.buffer_store(largest, T.reinterpret(f"float32x{WIDE}", bits), [every])
        vector, lanes = T.reinterpret(f"int32x{WIDE}", largest[every]), WIDE
        while lanes > 1:
            lanes //= 2
            halves = [[*range(first, first + lanes)] for first in (0, lanes)]
            vector = T.max(tirx.Shuffle([vector], halves[0]), tirx.Shuffle([vector], halves[1]))
        T.buffer_store(scale, T.reinterpret("float32", vector), [2])
        bits = T.reinterpret("int32", scale[2])
        finite, zero = bits < 0x7F800000, scale[2] < T.float32(LEAST)
        T.buffer_store(scale, T.Select(tirx.all(finite, tirx.Not(zero)), T.float32(LARGEST) / scale[2], T.float32(0)), [0])
        factor = T.Select(finite, scale[2] / T.float32(LARGEST), T.float32(float("nan")))
        T.buffer_store(scale, T.Select(zero, T.float32(0), factor), [1])

    def _chunk(self, x, row, chunk, scale, words, numbers, factors):
        strides, byte, size = self.strides, self.strides.byte, self.strides.chunk
        real = x[row, T.ramp(chunk * size, 1, size)] * T.broadcast(scale[0], size)
        rounded = T.Cast(f"int8x{size}", T.Cast(f"int32x{size}", T.nearbyint(real)))
        order = [
            (4 * at + within) * strides.sides + side
            for at in range(VECTORS)
            for side in range(strides.sides)
            for within in range(4)
        ]
        T.buffer_store(
            words, T.reinterpret(f"int32x{size // 4}", tirx.Shuffle([rounded], order)), [T.ramp(0, 1, strides.vectors)]
        )
        stride, place = chunk // byte.lanes, chunk % byte.lanes
        if strides.rest and not strides.copied:
            # the last stride's own columns are its last ones
            place = T.Select(stride < strides.whole, place, place + byte.lanes - strides.rest // size)
        lane = byte.lane_of(place)
        for at in range(strides.vectors):
            T.buffer_store(numbers, words[at], [row, stride, at, lane])
        T.buffer_store(factors, scale[1], [row, stride, lane])

    def _zeros(self, numbers, row, stride):
        strides, byte = self.strides, self.strides.byte
        whole, bits = T.ramp(0, 1, byte.lanes), strides.matrix.bits
        points = T.broadcast(T.uint8(1 << (bits - 1)), byte.width)
        none = T.broadcast(T.int32(0), byte.lanes)
        total = byte.started(none, bits)
        for at in range(strides.vectors):
            total = byte.plus(total, points, T.reinterpret(f"int8x{byte.width}", numbers[row, stride, at, whole]), bits)
        return none - byte.ended(total, none, bits)
