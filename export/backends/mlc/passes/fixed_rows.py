"""Rows of numbers in fixed point, a power of two for each group of 32, in the order in which products take them."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.backends.mlc.blocks.linear import ZERO_POINT
from export.backends.mlc.parameters import GROUP, PER_WORD
from export.processor.block_instructions import VECTORS
from export.processor.block_rounding import halved
from export.processor.block_strides import Strides, added_up

PLANES = {"float16": 2, "float32": 3}
"""Bytes of a fixed-point number by the model dtype."""

LEAST_EXPONENT, NOT_FINITE = 32, 255
"""Biased exponents of float32: smaller largest values are taken for 2^-95; infinity and NaN."""

WIDE = 16
"""Numbers that are taken at once; a narrower processor takes several vectors for them."""

WORDS = GROUP // 2
"""int32 of two 16-bit numbers each, of a group."""


@dataclass(frozen=True)
class FixedPoint:
    """Writes the rounding of one row.

    Attributes:
        strides: how the row is taken; a chunk of it is a group.
        x: (batch, tokens, columns), float16 or float32.
    """

    strides: Strides
    x: tirx.Buffer

    @property
    def planes(self) -> int:
        return PLANES[str(self.x.dtype)]

    @property
    def groups(self) -> int:
        return self.strides.matrix.columns // GROUP

    def write_planes(self, row, numbers, zeros, powers):
        """For vectors that lie along a row, by (row, stride).

        numbers (plane, vector of codes, lane): int32 of four bytes each. zeros (lane): int32, minus the zero point times
        what a lane's numbers add up to. powers (lane): float32; zero where another stride has the lane's chunk.
        """
        strides, lanes = self.strides, self.strides.byte.lanes
        whole = T.ramp(0, 1, lanes)
        if strides.rest:
            last = strides.count - 1
            for plane in range(self.planes):
                for at in range(strides.vectors):
                    T.buffer_store(numbers, T.broadcast(T.int32(0), lanes), [row, last, plane, at, whole])
            T.buffer_store(zeros, T.broadcast(T.int32(0), lanes), [row, last, whole])
            T.buffer_store(powers, T.broadcast(T.float32(0), lanes), [row, last, whole])
        order = [
            (4 * at + within) * strides.sides + side
            for at in range(VECTORS)
            for side in range(strides.sides)
            for within in range(4)
        ]
        words = T.sblock_alloc_buffer((strides.vectors,), "int32")

        def put(group, fixed, power):
            stride, lane = strides.place_of(group)
            every = [fixed[_wide(half)] for half in range(GROUP // WIDE)]
            for plane in range(self.planes):
                shifted = [
                    T.Cast(f"int8x{WIDE}", T.shift_right(part, T.broadcast(T.int32(8 * plane), WIDE))) for part in every
                ]
                bytes_ = T.reinterpret(f"int32x{strides.vectors}", tirx.Shuffle(shifted, order))
                T.buffer_store(words, bytes_, [T.ramp(0, 1, strides.vectors)])
                for at in range(strides.vectors):
                    T.buffer_store(numbers, words[at], [row, stride, plane, at, lane])
            T.buffer_store(zeros, -ZERO_POINT * added_up(sum(every[1:], every[0]), WIDE), [row, stride, lane])
            T.buffer_store(powers, power, [row, stride, lane])

        self._each_group(row, put)

    def write_words(self, row, words, powers, slot):
        """For vectors whose lanes are rows of the matrix, by (row, slot of the group): `WORDS` pairs, and a power of two.

        A pair has the columns i and i + 4 of the eight of a word of codes.
        """
        pairs = [
            first + at + side * (PER_WORD // 2)
            for first in range(0, GROUP, PER_WORD)
            for at in range(PER_WORD // 2)
            for side in range(2)
        ]

        def put(group, fixed, power):
            halves = [T.Cast(f"int16x{WIDE}", fixed[_wide(half)]) for half in range(GROUP // WIDE)]
            turned = T.reinterpret(f"int32x{WORDS}", tirx.Shuffle(halves, pairs))
            T.buffer_store(words, turned, [row, slot(group), T.ramp(0, 1, WORDS)])
            T.buffer_store(powers, power, [row, slot(group)])

        self._each_group(row, put)

    def _each_group(self, row, put):
        """``put`` group by group: its number, its fixed-point numbers, int32 (GROUP,), and its power of two."""
        x, tokens = self.x, self.x.shape[1]
        top, most = 8 * self.planes - 2, 2 ** (8 * self.planes - 1) - 1
        largest = T.sblock_alloc_buffer((WIDE,), "int32")
        exponent = T.sblock_alloc_buffer((1,), "int32")
        factor = T.sblock_alloc_buffer((2,), "float32")
        fixed = T.sblock_alloc_buffer((GROUP,), "int32")
        with T.serial(0, self.groups) as group:
            read = [
                T.Cast(f"float32x{WIDE}", x[row // tokens, row % tokens, T.ramp(group * GROUP + half * WIDE, 1, WIDE)])
                for half in range(GROUP // WIDE)
            ]
            # floats without their signs are in the order of their bits
            sizes = [
                T.bitwise_and(T.reinterpret(f"int32x{WIDE}", part), T.broadcast(T.int32(0x7FFFFFFF), WIDE)) for part in read
            ]
            T.buffer_store(largest, T.max(*sizes), [_wide(0)])
            T.buffer_store(exponent, T.shift_right(T.max(halved(largest[_wide(0)], WIDE, 1), LEAST_EXPONENT << 23), 23), [0])
            T.buffer_store(factor, T.reinterpret("float32", T.shift_left(254 + top - exponent[0], 23)), [0])
            for half, part in enumerate(read):
                rounded = T.Cast(f"int32x{WIDE}", T.nearbyint(part * T.broadcast(factor[0], WIDE)))
                T.buffer_store(fixed, T.min(rounded, T.broadcast(T.int32(most), WIDE)), [_wide(half)])
            power = T.reinterpret("float32", T.shift_left(exponent[0] - top, 23))
            T.buffer_store(factor, T.Select(exponent[0] == NOT_FINITE, T.float32(float("nan")), power), [1])
            put(group, fixed, factor[1])


def _wide(part):
    return T.ramp(part * WIDE, 1, WIDE)
