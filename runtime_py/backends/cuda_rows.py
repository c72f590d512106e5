"""Caches of several sequences as rows of buffers in a GPU's memory, for ONNX Runtime's CUDA provider.

A call is given rows by address, so that those of all sequences share a buffer; the driver moves what they hold on the
device. Every call of the provider is over when it returns, and so is every copy here, so neither waits for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.backends.cuda_driver import CudaDriver, PitchedCopy
from runtime_py.backends.ort_decoder import CacheBuffers, DeviceArray
from runtime_py.backends.ort_rows import ADVICE, CacheShapes, OrtRow, RowPool, alike_caches
from runtime_py.errors import MachineError

CUDA = "cuda"
"""What ONNX Runtime calls the device."""

STREAM = 0
"""The default one of a context: nobody has to give it back."""


class CudaRows(RowPool):
    """Rows in the memory of the GPU that the provider runs on.

    Args:
        ort: the module onnxruntime.
        driver: of the same GPU.

    Raises:
        MachineError: the GPU has not so much memory.
    """

    def __init__(self, ort: Any, driver: CudaDriver, shapes: CacheShapes, count: int, capacity: int) -> None:
        super().__init__(count, capacity)
        self._driver = driver
        self._spare = count
        self._held: list[Any] = []
        self._stacks: list[RowStack] = []
        self._arrays: dict[str, DeviceArray] = {}
        for (heads, width), dtype, names in alike_caches(shapes):
            shape = (len(names), count + 1, heads, capacity, width)
            memory = _memory(ort, driver, math.prod(shape) * dtype.itemsize, f"{count} times {capacity} positions")
            stack = RowStack(memory.data_ptr(), shape, dtype)
            driver.clear(stack.address, stack.nbytes, STREAM)
            self._held.append(memory)
            self._stacks.append(stack)
            self._arrays |= {name: stack.layer(place) for place, name in enumerate(names)}
        driver.synchronise(STREAM)

    def _over(self, first: int, last: int) -> CacheBuffers:
        return CacheBuffers({name: array.rows(first, last) for name, array in self._arrays.items()})

    def _copy(self, source: int, target: int, length: int) -> None:
        self._move((source, target, length))

    def _exchange(self, one: OrtRow, other: OrtRow) -> None:
        spare = self._spare
        self._move((one.row, spare, one.length), (other.row, one.row, other.length), (spare, other.row, one.length))

    def _move(self, *moves: tuple[int, int, int]) -> None:
        """Copy positions from row to row, one move after the other."""
        self._driver.make_current()
        for source, target, length in moves:
            for stack in self._stacks if length and source != target else ():
                self._driver.copy(stack.moved(source, target, length), STREAM)
        self._driver.synchronise(STREAM)


@dataclass(frozen=True)
class RowStack:
    """Caches of one shape, of all layers that have it: an array (layers, rows, kv_heads, capacity, width) on the device."""

    address: int
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def layer(self, place: int) -> DeviceArray:
        """The rows of one layer."""
        return DeviceArray(self.address + place * self.nbytes // self.shape[0], self.shape[1:], self.dtype, CUDA)

    def moved(self, source: int, target: int, length: int) -> PitchedCopy:
        """The copy of a row's first positions to another row, in every layer and head."""
        layers, rows, heads, capacity, width = self.shape
        pitch = capacity * width * self.dtype.itemsize
        return PitchedCopy(
            self.address + source * heads * pitch,
            self.address + target * heads * pitch,
            width=length * width * self.dtype.itemsize,
            height=heads,
            depth=layers,
            pitch=pitch,
            slice_height=rows * heads,
        )


def _memory(ort: Any, driver: CudaDriver, size: int, what: str) -> Any:
    """An OrtValue of bytes on the device, which frees them when nothing holds it any more."""
    driver.make_current()
    try:
        return ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, CUDA, driver.device.index)
    except Exception as error:  # onnxruntime raises RuntimeError or classes of its own
        raise MachineError(
            f"{driver.device.name} has no {size / 1e6:.0f} MB left for a cache of {what}: {error}",
            f"{driver.device.memory / 1e6:.0f} MB less what weights and activations take",
            f"close other programs that use the GPU, {ADVICE}",
        ) from error
