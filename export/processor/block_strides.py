"""How a row of a matrix of MatMulNBits is taken piece by piece, and its numbers with it."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script import tirx as T

from export.processor.block_instructions import CHUNK, VECTORS, BlockInstructions

if TYPE_CHECKING:
    from export.processor.block_product import BlockMatrix


@dataclass(frozen=True)
class Strides:
    """How a row is taken: a stride is four vectors of codes, of which each lane sums one chunk.

    The last stride of a row ends where the row ends, and so has columns of the one before; their factors are zero there.
    """

    matrix: BlockMatrix
    byte: BlockInstructions

    @property
    def sides(self) -> int:
        """Codes of a byte."""
        return 8 // self.matrix.bits

    @property
    def chunk(self) -> int:
        """Columns that one lane sums up."""
        return CHUNK * self.sides

    @property
    def columns(self) -> int:
        """Of a stride."""
        return self.chunk * self.byte.lanes

    @property
    def whole(self) -> int:
        """Strides that have all of their columns to themselves."""
        return self.matrix.columns // self.columns

    @property
    def rest(self) -> int:
        """Columns of the last stride that no other has; 0 where it is whole."""
        return self.matrix.columns % self.columns

    @property
    def count(self) -> int:
        return self.whole + (self.rest > 0)

    @property
    def copied(self) -> bool:
        """Whether a row is shorter than a stride, so that its codes are copied before they are read as one."""
        return self.whole == 0

    @property
    def shared(self) -> int:
        """Chunks of the last stride that the one before has too."""
        return self.byte.lanes - self.rest // self.chunk if self.rest and not self.copied else 0

    @property
    def zeroed(self) -> bool:
        """Whether products need the zero points of codes taken off."""
        return not self.byte.signed_codes(self.matrix.bits)

    @property
    def vectors(self) -> int:
        """Vectors of numbers."""
        return VECTORS * self.sides

    @property
    def scales(self) -> int:
        """That a stride reads."""
        return max(1, self.columns // self.matrix.block)

    def first_column(self, stride):
        if not self.rest or self.copied:
            return stride * self.columns
        return T.min(stride * self.columns, self.matrix.columns - self.columns)

    def place_of(self, chunk):
        """The stride and the lane that sum a chunk."""
        stride, place = chunk // self.byte.lanes, chunk % self.byte.lanes
        if self.shared:
            # the last stride's own columns are its last ones
            place = T.Select(stride < self.whole, place, place + self.shared)
        return stride, self.byte.lane_of(place)

    def count_of(self, lane):
        """Strides in which the lane has a chunk that no other stride has."""
        if not self.shared:
            return T.int64(self.count)
        return self.whole + T.Cast("int64", self.byte.chunk_of(lane) >= self.shared)

    def chunk_of(self, lane, stride):
        """The inverse of `place_of`."""
        chunk = stride * self.byte.lanes + self.byte.chunk_of(lane)
        return chunk - T.Select(stride < self.whole, 0, self.shared) if self.shared else chunk

    def turn_of(self, lane):
        """When a lane is added, if halves of lanes are added as soon as they are whole; the inverse is the same.

        `added_up` adds lanes that are half of all apart, so a turn is the lane's number with its bits in reverse.
        """
        bits = self.byte.lanes.bit_length() - 1
        return sum(T.shift_left(T.bitwise_and(T.shift_right(lane, at), 1), bits - 1 - at) for at in range(bits))

    @property
    def slots(self) -> int:
        """For the chunks of a row, lane by lane; some stay empty where the last stride is not whole."""
        return self.count * self.byte.lanes

    def slot(self, chunk):
        """Where a chunk lies: those of a lane behind one another, lanes in the order in which they are added."""
        stride, lane = self.place_of(chunk)
        return self.turn_of(lane) * self.count + stride

    def scale_of(self, lane: int) -> int:
        """Of those that a stride reads, the one of a lane's chunk."""
        return self.byte.chunk_of(lane) * self.chunk // self.matrix.block


def added_up(vector, lanes):
    """The sum of the lanes, halves first."""
    while lanes > 1:
        lanes //= 2
        halves = [[*range(first, first + lanes)] for first in (0, lanes)]
        vector = tirx.Shuffle([vector], halves[0]) + tirx.Shuffle([vector], halves[1])
    return vector
