"""Caches of several sequences as rows of one buffer, so that one decoder call takes a token of each.

GroupQueryAttention takes a length for every row of its batch and leaves what lies behind it alone; the rows that enter a
call lie next to each other in the buffer. Where one that joins or leaves parts them, rows change places, which copies
what is filled of them and nothing else.

Source: microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention (seqlens_k).
"""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.row_places import RowPlaces
from runtime_py.backends.small_pages import stacked_zeros
from runtime_py.errors import UsageError
from runtime_py.memory import require_bytes

CacheShapes = Mapping[str, tuple[tuple[int, int], np.dtype]]
"""Cache input to (kv_heads, head width) and dtype."""

ADVICE = "ask for fewer sequences at a time (serve --slots), or export with a smaller --context"


class OrtRow:
    """One sequence of a pool; ``row`` changes when `RowPool.gather` moves it."""

    def __init__(self, pool: RowPool, row: int) -> None:
        self.pool = pool
        self.row = row
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.pool.capacity

    @property
    def buffers(self) -> CacheBuffers:
        """Caches (1, kv_heads, capacity, head width) over this row."""
        return self.pool.values(self.row, self.row + 1)


class RowPool(ABC):
    """Buffers (count, kv_heads, capacity, head width) by cache input, wherever their memory is.

    Attributes:
        capacity: positions of a row.
        rows: all of them, empty at first.
    """

    def __init__(self, count: int, capacity: int) -> None:
        self.capacity = capacity
        self.rows = [OrtRow(self, row) for row in range(count)]
        self._places = RowPlaces(self.rows, self._exchange)
        self._values: dict[tuple[int, int], CacheBuffers] = {}

    def values(self, first: int, last: int) -> CacheBuffers:
        """What a call is given of the rows from ``first`` to before ``last``; it shares their memory."""
        if (first, last) not in self._values:
            self._values[first, last] = self._over(first, last)
        return self._values[first, last]

    def gather(self, rows: Sequence[OrtRow]) -> int:
        """See runtime_py.backends.row_places.RowPlaces."""
        return self._places.gather(rows)

    def copy(self, source: OrtRow, target: OrtRow, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, and nothing else."""
        if source.pool is not self or target.pool is not self or not 0 <= length <= source.length:
            raise UsageError(
                f"a copy of {length} positions of {source.length}", "positions that are filled", "ask for fewer positions"
            )
        self._copy(source.row, target.row, length)
        target.length = length

    @abstractmethod
    def _over(self, first: int, last: int) -> CacheBuffers: ...

    @abstractmethod
    def _copy(self, source: int, target: int, length: int) -> None: ...

    @abstractmethod
    def _exchange(self, one: OrtRow, other: OrtRow) -> None: ...


class HostRows(RowPool):
    """Rows in the processor's memory, where ONNX Runtime reads a NumPy array in place (onnxruntime,
    OrtValue.ortvalue_from_numpy).

    Args:
        bind: makes an OrtValue over a NumPy array.

    Raises:
        DoesNotFitError: this machine has not so much memory.
    """

    def __init__(self, bind: Callable[[np.ndarray], Any], shapes: CacheShapes, count: int, capacity: int) -> None:
        super().__init__(count, capacity)
        total = sum(math.prod(shape) * count * capacity * dtype.itemsize for shape, dtype in shapes.values())
        require_bytes(total, f"a cache of {count} times {capacity} positions", ADVICE)
        self._bind = bind
        self._stacks: list[np.ndarray] = []
        self._arrays: dict[str, np.ndarray] = {}
        for (heads, width), dtype, names in alike_caches(shapes):
            self._stacks.append(stacked_zeros(len(names), (count, heads, capacity, width), dtype))
            self._arrays |= zip(names, self._stacks[-1], strict=True)

    def _over(self, first: int, last: int) -> CacheBuffers:
        arrays = {name: array[first:last] for name, array in self._arrays.items()}
        return CacheBuffers({name: self._bind(array) for name, array in arrays.items()}, arrays)

    def _copy(self, source: int, target: int, length: int) -> None:
        for stack in self._stacks:  # of all layers at once: whoever waits for the interpreter may take it after each
            stack[:, target, :, :length] = stack[:, source, :, :length]

    def _exchange(self, one: OrtRow, other: OrtRow) -> None:
        for array in self._arrays.values():
            kept = array[one.row, :, : one.length].copy()
            array[one.row, :, : other.length] = array[other.row, :, : other.length]
            array[other.row, :, : one.length] = kept


def alike_caches(shapes: CacheShapes) -> list[tuple[tuple[int, int], np.dtype, list[str]]]:
    """Heads, width and dtype of the caches that are of one size, and their names."""
    return [(*kind, [name for name, other in shapes.items() if other == kind]) for kind in dict.fromkeys(shapes.values())]


def rounds_over_rows(graph: Path) -> bool:
    """Whether a graph rounds activations by one scale a call (DynamicQuantizeLinear), whatever sequences are in it."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantizeLinear") >= 0
