"""How a row of codes is taken step by step while it is multiplied with fixed-point numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from export.backends.mlc.parameters import GROUP, PER_WORD
from export.processor.byte_products import ByteProducts, Plane
from export.processor.vectors import LINE, Index

PLANES = {"float16": 2, "float32": 3}
"""Bytes of a fixed-point number by the model dtype."""

TOGETHER = 32
"""Rows of the matrix that lie in a core's cache while rows of numbers pass by, each of which lies in its fastest one."""


@dataclass(frozen=True)
class Steps:
    """How a row is taken piece by piece, a piece being what one vector of codes holds and a step about a line of codes."""

    byte: ByteProducts
    columns: int
    dtype: str

    @property
    def pieces(self) -> int:
        return self.columns // self.byte.elements

    @property
    def groups(self) -> int:
        """Of one piece."""
        return self.byte.elements // GROUP

    @property
    def step(self) -> int:
        """Pieces of one step, whose scales are read at once."""
        line = LINE // self.byte.width
        return next(number for number in (2 * line, line, 2, 1) if self.pieces % number == 0)

    @property
    def scale_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def factors(self, scales: tirx.Buffer, powers: tirx.Buffer, number: Index, row: Index, first: Index) -> tirx.Expr:
        """The scales of a step's groups times their powers of two, of which no product is rounded."""
        together = self.step * self.groups
        at = first * self.groups if together == 1 else T.ramp(first * self.groups, 1, together)
        return T.Cast("float32" if together == 1 else f"float32x{together}", scales[row, at]) * powers[number, at]

    def factor_of(self, factors: tirx.Expr, first: int, lanes: int) -> tirx.Expr:
        """The factors of so many words of a step from the word ``first`` on."""
        together = self.step * self.groups
        if together == 1:
            return T.broadcast(factors, lanes)
        chosen = [(first + lane) * PER_WORD // GROUP for lane in range(lanes)]
        return tirx.Shuffle([factors] * max(1, lanes // together), chosen)

    def exact(self, words: tirx.Expr, plane: Plane) -> tirx.Expr:
        """int32 by word: the products of a piece's codes with its numbers, of which `plane` gives the bytes."""
        return self.byte.sums(words, plane, PLANES[self.dtype])

    def plane(self, planes: tirx.Buffer, number: Index, piece: Index, which: int, side: int) -> tirx.Expr:
        return planes[number, piece, which, side, T.ramp(0, 1, self.byte.width)]


@dataclass(frozen=True)
class FixedRows:
    """Rows of fixed-point numbers, as `row_product` makes them.

    Attributes:
        planes: int8 (numbers, pieces, bytes of a number, 2, width), in a piece those of even codes and of odd ones.
        zeros: int32 (numbers, words of a row), what is added to the products of a word for the zero point.
        powers: float32 (numbers, groups of a row).
    """

    planes: tirx.Buffer
    zeros: tirx.Buffer
    powers: tirx.Buffer


@dataclass(frozen=True)
class RowProducts(ABC):
    """Writes products of rows of numbers with rows of the matrix.

    Attributes:
        steps: how a row is taken.
        fixed: the rows of numbers.
        words, scales: the matrix's.
        out: float32 (batch, tokens, rows).
    """

    steps: Steps
    fixed: FixedRows
    words: tirx.Buffer
    scales: tirx.Buffer
    out: tirx.Buffer

    @abstractmethod
    def write(self, block: Index) -> None:
        """All rows of numbers times the ``TOGETHER`` rows of the matrix from ``block * TOGETHER`` on."""
