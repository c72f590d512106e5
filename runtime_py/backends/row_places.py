"""Which rows of a buffer change places, so that those of one decoder call lie next to each other.

Places alone: what the rows hold is moved by whoever has the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Row(Protocol):
    """One sequence's part of a buffer."""

    row: int
    """Where in the buffer it lies."""
    length: int
    """Positions that are filled; what lies behind them is nobody's."""


RowType = TypeVar("RowType", bound=Row)


class RowPlaces(Generic[RowType]):
    """The rows of a buffer by place.

    Args:
        rows: the row of each place, in order.
        exchange: makes two rows hold in each other's place what they hold in their own; ``row`` is set here, afterwards.
    """

    def __init__(self, rows: Sequence[RowType], exchange: Callable[[RowType, RowType], None]) -> None:
        self._at = list(rows)
        self._exchange = exchange

    def gather(self, rows: Sequence[RowType]) -> int:
        """Bring these next to each other, in any order, where the fewest positions have to be copied; the first place."""
        places, count = {row.row for row in rows}, len(rows)
        first = min(places, default=0)
        if max(places, default=-1) - first < count:
            return first

        def parted(first: int) -> tuple[list[RowType], list[RowType]]:
            """Who would have to enter and to leave the places from the first on."""
            there = range(first, first + count)
            return [row for row in rows if row.row not in there], [self._at[place] for place in there if place not in places]

        def copied(first: int) -> int:
            return sum(row.length for those in parted(first) for row in those)

        first = min(range(len(self._at) - count + 1), key=copied)
        for entering, leaving in zip(*parted(first), strict=True):
            self._exchange(entering, leaving)
            entering.row, leaving.row = leaving.row, entering.row
            self._at[entering.row], self._at[leaving.row] = entering, leaving
        return first
