"""Caches of several sequences as rows of buffers in the processor's memory, for ONNX Runtime.

GroupQueryAttention takes a length for every row of its batch and leaves what lies behind it alone.

Source: microsoft/onnxruntime, docs/ContribOperators.md, com.microsoft.GroupQueryAttention (seqlens_k).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.row_pool import ADVICE, PoolRow, RowPool
from runtime_py.backends.small_pages import stacked_zeros
from runtime_py.memory import require_bytes

CacheShapes = Mapping[str, tuple[tuple[int, int], np.dtype]]
"""Cache input to (kv_heads, head width) and dtype."""

OrtRow = PoolRow[CacheBuffers]
"""One sequence; a call is given OrtValues, or addresses on a device, by cache input."""


class HostRows(RowPool[CacheBuffers]):
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

    def _copy(self, source: OrtRow, target: OrtRow, length: int) -> None:
        for stack in self._stacks:  # of all layers at once: whoever waits for the interpreter may take it after each
            stack[:, target.row, :, :length] = stack[:, source.row, :, :length]

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
