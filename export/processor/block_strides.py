"""How a row of a matrix of MatMulNBits is taken piece by piece, and its numbers with it."""

# mypy: ignore-errors
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    def vectors(self) -> int:
        """Vectors of numbers."""
        return VECTORS * self.sides

    @property
    def row_bytes(self) -> int:
        """Of a row of numbers with its zeros and factors."""
        return self.count * self.byte.width * (self.vectors + 2)

    @property
    def scales(self) -> int:
        """That a stride reads."""
        return max(1, self.columns // self.matrix.block)

    def first_column(self, stride):
        if not self.rest or self.copied:
            return stride * self.columns
        return T.min(stride * self.columns, self.matrix.columns - self.columns)

    def scale_of(self, lane: int) -> int:
        """Of those that a stride reads, the one of a lane's chunk."""
        return self.byte.chunk_of(lane) * self.chunk // self.matrix.block
