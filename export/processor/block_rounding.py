"""Rows of numbers as int8 with a scale for each block, in the order in which products take them."""

# mypy: ignore-errors
from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import VECTORS
from export.processor.block_strides import Strides
from export.processor.lane_reduction import reduce_lanes
from export.processor.vectors import span, splat

LARGEST = 127
"""Of the numbers."""

WIDE = 16
"""Numbers that are compared at once; a narrower processor takes several vectors for them."""

LEAST = 2.0**-120
"""Largest values below this are taken for zero: 127 over a smaller one is no float32."""


@dataclass(frozen=True)
class Rounding:
    """Writes the rounding of one row.

    What `write` leaves, by (row, stride): numbers (vectors, lanes), four int8 in each int32, in the order of decoded codes;
    zeros (lanes) int32, minus the zero point times what a lane's numbers add up to; factors (lanes) float32, the scale of
    the block that a lane's chunk lies in. What `write_chunks` leaves, by (row, slot of the chunk): numbers (vectors,), zeros
    and factors, one of each.
    """

    strides: Strides

    def write(self, x, row, numbers, zeros, factors):
        """For `block_kernel`, whose vectors lie along a row."""
        strides = self.strides
        byte = strides.byte
        whole = T.ramp(0, 1, byte.lanes)
        with T.sblock("rounding"):
            T.reads(x[row, 0 : strides.matrix.columns])
            T.writes(numbers[row, :, :, :], zeros[row, :, :], factors[row, :, :])
            if strides.rest:
                for at in range(strides.vectors):
                    T.buffer_store(numbers, T.broadcast(T.int32(0), byte.lanes), [row, strides.count - 1, at, whole])
                T.buffer_store(factors, T.broadcast(T.float32(0), byte.lanes), [row, strides.count - 1, whole])

            def put(chunk, words, factor):
                stride, lane = strides.place_of(chunk)
                for at in range(strides.vectors):
                    T.buffer_store(numbers, words[at], [row, stride, at, lane])
                T.buffer_store(factors, factor, [row, stride, lane])

            self._each_chunk(x, row, put)
            if strides.zeroed:
                with T.serial(0, strides.count) as stride:
                    T.buffer_store(zeros, self._zeros(numbers, row, stride), [row, stride, whole])

    def write_chunks(self, x, row, numbers, zeros, factors, slot):
        """For `block_panels`, which take a number of every chunk for all lanes; ``slot`` says where a chunk goes."""
        with T.sblock("rounding"):
            T.reads(x[row, 0 : self.strides.matrix.columns])
            T.writes(numbers[row, :, :], zeros[row, :], factors[row, :])

            def put(chunk, words, factor):
                every = T.ramp(0, 1, self.strides.vectors)
                T.buffer_store(numbers, words[every], [row, slot(chunk), every])
                T.buffer_store(factors, factor, [row, slot(chunk)])

            self._each_chunk(x, row, put)
            if self.strides.zeroed:
                self._write_zeros(row, numbers, zeros)

    def _write_zeros(self, row, numbers, zeros):
        """Those of all slots, several at once; what stands for one that is empty is not read."""
        strides = self.strides
        byte = replace(strides.byte, width=min(strides.byte.width, 4 * strides.vectors))
        lanes = byte.lanes
        with T.serial(0, int(zeros.shape[1]) // lanes) as several:
            sums = [
                self._minus_points(
                    byte, [numbers[row, several * lanes + at, part] for part in parts(strides.vectors, lanes)]
                )
                for at in range(lanes)
            ]
            T.buffer_store(zeros, reduce_lanes(sums, operator.add), [row, T.ramp(several * lanes, 1, lanes)])

    def _each_chunk(self, x, row, put):
        """``put`` chunk by chunk: its number, its words and the scale of its block; scales of several blocks at once."""
        matrix, chunks = self.strides.matrix, self.strides.matrix.block // self.strides.chunk
        blocks = matrix.columns // matrix.block
        # of as many blocks as lanes the numbers of lanes are known here
        together = min(self.strides.byte.lanes, 1 << (blocks.bit_length() - 1))
        lanes = span(0, together)
        largest = T.sblock_alloc_buffer((together, WIDE), "int32")
        scales = T.sblock_alloc_buffer((3, together), "float32")
        words = T.sblock_alloc_buffer((self.strides.vectors,), "int32")

        def write(first):
            for at in range(together):
                self._size(x, row, first + at, largest, at)
            sizes = reduce_lanes([halved(largest[at, span(0, WIDE)], WIDE, together) for at in range(together)], T.max)
            T.buffer_store(scales, T.reinterpret(f"float32x{together}" if together > 1 else "float32", sizes), [2, lanes])
            for at, value in enumerate(factors_of(scales[2, lanes], together)):
                T.buffer_store(scales, value, [at, lanes])
            for at in range(together):
                for part in range(chunks):
                    chunk = (first + at) * chunks + part
                    self._round(x, row, chunk, scales[0, at], words)
                    put(chunk, words, scales[1, at])

        with T.serial(0, blocks // together) as several:
            write(several * together)
        if blocks % together:
            # the first of these have been written before
            write(blocks - together)

    def _size(self, x, row, block, largest, place):
        """The bits of the largest sizes of a block's numbers, by lane."""
        size, here = self.strides.matrix.block, [place, span(0, WIDE)]
        for at in range(size // WIDE):
            bits = T.reinterpret(f"int32x{WIDE}", x[row, span(block * size + at * WIDE, WIDE)])
            bits = T.bitwise_and(bits, T.broadcast(T.int32(0x7FFFFFFF), WIDE))
            # floats without their signs are in the order of their bits, NaN above all
            T.buffer_store(largest, T.max(largest[tuple(here)], bits) if at else bits, here)

    def _round(self, x, row, chunk, factor, words):
        strides, size = self.strides, self.strides.chunk
        real = x[row, T.ramp(chunk * size, 1, size)] * T.broadcast(factor, size)
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

    def _zeros(self, numbers, row, stride):
        whole = T.ramp(0, 1, self.strides.byte.lanes)
        return self._minus_points(self.strides.byte, [numbers[row, stride, at, whole] for at in range(self.strides.vectors)])

    def _minus_points(self, byte, vectors):
        """Minus the zero point times the numbers of some vectors, added up by lane."""
        bits = self.strides.matrix.bits
        points = T.broadcast(T.uint8(1 << (bits - 1)), byte.width)
        none = T.broadcast(T.int32(0), byte.lanes)
        total = byte.started(none, bits)
        for vector in vectors:
            total = byte.plus(total, points, T.reinterpret(f"int8x{byte.width}", vector), bits)
        return none - byte.ended(total, none, bits)


def halved(vector, lanes, left):
    """The largest of int32 lanes that are ``left`` apart."""
    while lanes > left:
        lanes //= 2
        vector = T.max(*(tirx.Shuffle([vector], [*range(first, first + lanes)]) for first in (0, lanes)))
    return vector


def factors_of(largest, many):
    """Of blocks with these largest sizes: what their numbers are multiplied with, and what products are."""
    infinite = T.int32(0x7F800000)
    bits = T.reinterpret(f"int32x{many}" if many > 1 else "int32", largest)
    finite = bits < (T.broadcast(infinite, many) if many > 1 else infinite)
    zero, none, most = largest < splat(LEAST, many), splat(0.0, many), splat(LARGEST, many)
    factor = T.Select(finite, T.Select(zero, none, most / largest), none)
    return factor, T.Select(zero, none, T.Select(finite, largest / most, splat(float("nan"), many)))


def parts(many, lanes):
    """Indices of ``many`` numbers, a vector of ``lanes`` each."""
    return [T.ramp(first, 1, lanes) for first in range(0, many, lanes)]
