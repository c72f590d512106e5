"""Sequences whose caches are rows of one buffer, so that one decoder call takes a token of each.

What a call takes lies next to each other; where a row that joins or leaves parts them, rows change places, which copies
what is filled of them and nothing else. Where the memory is, and who copies in it, is each pool's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime_py.backends.row_places import RowPlaces
from runtime_py.errors import UsageError

Buffers = TypeVar("Buffers")
"""What a decoder call is given of the rows that it takes."""

ADVICE = "ask for fewer sequences at a time (serve --slots), or export with a smaller --context"


@dataclass(eq=False)
class PoolRow(Generic[Buffers]):
    """One sequence of a pool; ``row`` changes when `RowPool.gather` moves it.

    Attributes:
        capacity: positions that it may use.
        length: positions that are filled.
    """

    pool: RowPool[Buffers]
    capacity: int
    row: int = 0
    length: int = 0

    @property
    def buffers(self) -> Buffers:
        """The caches of this sequence alone."""
        return self.pool.values(self.row, self.row + 1)


class RowPool(ABC, Generic[Buffers]):
    """Buffers (count, kv_heads, positions, head width) by cache input, wherever their memory is.

    Args:
        capacity: positions that a row may use.

    Attributes:
        rows: all of them, empty at first.
    """

    def __init__(self, count: int, capacity: int) -> None:
        self.rows = [PoolRow(self, capacity, row) for row in range(count)]
        self._places = RowPlaces(self.rows, self._exchange)
        self._values: dict[tuple[int, int], Buffers] = {}

    def values(self, first: int, last: int) -> Buffers:
        """What a call is given of the rows from ``first`` to before ``last``; it shares their memory."""
        if (first, last) not in self._values:
            assert 0 <= first < last <= len(self.rows)
            self._values[first, last] = self._over(first, last)
        return self._values[first, last]

    def gather(self, rows: Sequence[PoolRow[Buffers]]) -> int:
        """See runtime_py.backends.row_places.RowPlaces."""
        return self._places.gather(rows)

    def holds(self, row: PoolRow[Buffers]) -> bool:
        """Whether this is a row of the pool that nobody has taken over."""
        return row in self.rows

    def copy(self, source: PoolRow[Buffers], target: PoolRow[Buffers], length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, and nothing else.

        Raises:
            UsageError: these are no two rows of the pool, or so many positions are not filled.
        """
        if not (self.holds(source) and self.holds(target)) or source is target or not 0 <= length <= source.length:
            raise UsageError(
                f"a copy of {length} positions of {source.length}", "positions that are filled", "ask for fewer positions"
            )
        if length:
            self._copy(source, target, length)
        target.length = length

    @abstractmethod
    def _over(self, first: int, last: int) -> Buffers: ...

    @abstractmethod
    def _copy(self, source: PoolRow[Buffers], target: PoolRow[Buffers], length: int) -> None: ...

    @abstractmethod
    def _exchange(self, one: PoolRow[Buffers], other: PoolRow[Buffers]) -> None: ...
