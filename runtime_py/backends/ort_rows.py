"""Caches of several sequences as rows of one buffer, so that one decoder call takes a token of each.

GroupQueryAttention takes a length for every row of its batch and leaves what lies behind it alone; the rows that enter a
call lie next to each other in the buffer. Where one that joins or leaves parts them, rows change places, which copies
what is filled of them and nothing else. The buffers lie in the processor's memory, where ONNX Runtime reads a NumPy array in
place (onnxruntime, OrtValue.ortvalue_from_numpy).

Source: microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention (seqlens_k).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays
from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.small_pages import stacked_zeros
from runtime_py.contracts import TensorContract
from runtime_py.errors import UsageError
from runtime_py.memory import require_bytes

BATCH = "batch"
"""Name of the axis of sequences in a contract."""

CacheShapes = Mapping[str, tuple[tuple[int, int], np.dtype]]
"""Cache input to (kv_heads, head width) and dtype."""


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
        """OrtValues (1, kv_heads, capacity, head width) over this row."""
        return self.pool.values(self.row, self.row + 1)


class RowPool:
    """Buffers (count, kv_heads, capacity, head width) by cache input.

    Args:
        bind: makes an OrtValue over a NumPy array.

    Raises:
        DoesNotFitError: this machine has not so much memory.
    """

    def __init__(self, bind: Callable[[np.ndarray], Any], shapes: CacheShapes, count: int, capacity: int) -> None:
        total = sum(math.prod(shape) * count * capacity * dtype.itemsize for shape, dtype in shapes.values())
        advice = "ask for fewer sequences at a time (serve --slots), or export with a smaller --context"
        require_bytes(total, f"a cache of {count} times {capacity} positions", advice)
        self.capacity = capacity
        self._bind = bind
        self._stacks: list[np.ndarray] = []
        self._arrays: dict[str, np.ndarray] = {}
        for shape in dict.fromkeys(shapes.values()):
            names = [name for name, other in shapes.items() if other == shape]
            (heads, width), dtype = shape
            self._stacks.append(stacked_zeros(len(names), (count, heads, capacity, width), dtype))
            self._arrays |= zip(names, self._stacks[-1], strict=True)
        self._values: dict[tuple[int, int], CacheBuffers] = {}
        self.rows = [OrtRow(self, row) for row in range(count)]
        self._at = list(self.rows)

    def values(self, first: int, last: int) -> CacheBuffers:
        """OrtValues over the rows from ``first`` to before ``last``, which share their memory."""
        if (first, last) not in self._values:
            arrays = {name: array[first:last] for name, array in self._arrays.items()}
            self._values[first, last] = CacheBuffers({name: self._bind(array) for name, array in arrays.items()}, arrays)
        return self._values[first, last]

    def gather(self, rows: Sequence[OrtRow]) -> int:
        """Bring these next to each other, in any order, where the fewest positions have to be copied; the first place."""
        places, count = {row.row for row in rows}, len(rows)
        first = min(places, default=0)
        if max(places, default=-1) - first < count:
            return first

        def parted(first: int) -> tuple[list[OrtRow], list[OrtRow]]:
            """Who would have to enter and to leave the places from the first on."""
            there = range(first, first + count)
            return [row for row in rows if row.row not in there], [self._at[place] for place in there if place not in places]

        def copied(first: int) -> int:
            return sum(row.length for those in parted(first) for row in those)

        first = min(range(len(self._at) - count + 1), key=copied)
        for entering, leaving in zip(*parted(first), strict=True):
            self._swap(entering, leaving)
        return first

    def copy(self, source: OrtRow, target: OrtRow, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, and nothing else."""
        if source.pool is not self or target.pool is not self or not 0 <= length <= source.length:
            raise UsageError(
                f"a copy of {length} positions of {source.length}", "positions that are filled", "ask for fewer positions"
            )
        for stack in self._stacks:  # of all layers at once: whoever waits for the interpreter may take it after each
            stack[:, target.row, :, :length] = stack[:, source.row, :, :length]
        target.length = length

    def _swap(self, one: OrtRow, other: OrtRow) -> None:
        for array in self._arrays.values():
            kept = array[one.row, :, : one.length].copy()
            array[one.row, :, : other.length] = array[other.row, :, : other.length]
            array[other.row, :, : one.length] = kept
        one.row, other.row = other.row, one.row
        self._at[one.row], self._at[other.row] = one, other


def decode_rows(
    taken: Sequence[TensorContract], rows: Sequence[OrtRow], inputs: Sequence[Arrays], decode: Callable[..., np.ndarray]
) -> list[np.ndarray]:
    """One token of each row through as few decoder calls as the contract allows; of each float32 logits (1, vocabulary).

    Args:
        taken: what a call is fed, without caches.
        decode: takes a call's inputs, how many positions of each row are filled, int64 (rows,), and cache buffers.
    """
    pool = rows[0].pool
    logits: list[np.ndarray] = [np.empty(0)] * len(rows)
    for places in alike(taken, inputs):
        first = pool.gather([rows[place] for place in places])
        places.sort(key=lambda place: rows[place].row)
        feeds = stacked(taken, [inputs[place] for place in places])
        lengths = np.array([rows[place].length for place in places], np.int64)
        made = decode(feeds, lengths, pool.values(first, first + len(places)))
        for row, place in enumerate(places):
            rows[place].length += 1
            logits[place] = made[row]
    return logits


def alike(taken: Sequence[TensorContract], inputs: Sequence[Arrays]) -> list[list[int]]:
    """Which sequences may share a call: an input without an axis of sequences holds for all of them, so it is equal."""
    shared = [tensor.name for tensor in taken if BATCH not in tensor.shape]
    groups: dict[tuple[bytes | None, ...], list[int]] = {}
    for place, given in enumerate(inputs):
        key = tuple(np.asarray(given[name]).tobytes() if name in given else None for name in shared)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def stacked(taken: Sequence[TensorContract], inputs: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The inputs of several sequences, which have the same ones, as those of one call."""
    feeds = {}
    for tensor in taken:
        if tensor.name in inputs[0]:
            axis = tensor.shape.index(BATCH) if BATCH in tensor.shape else None
            given = [each[tensor.name] for each in inputs]
            feeds[tensor.name] = given[0] if axis is None else np.concatenate(given, axis=axis)
    return feeds


def rounds_over_rows(graph: Path) -> bool:
    """Whether a graph rounds activations by one scale a call (DynamicQuantizeLinear), whatever sequences are in it."""
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantizeLinear") >= 0
