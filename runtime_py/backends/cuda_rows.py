"""Caches of several sequences as rows of buffers in a GPU's memory, for ONNX Runtime's CUDA provider.

A call is given rows by address, so that those of all sequences share a buffer; the driver moves what they hold on the
device. Every call of the provider is over when it returns, and so is every copy here, so neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.device_rows import Device, DeviceRows, Move, RowStack
from runtime_py.backends.ort_decoder import CacheBuffers, DeviceArray
from runtime_py.backends.ort_rows import CacheShapes, alike_caches
from runtime_py.backends.row_pool import ADVICE
from runtime_py.errors import MachineError

CUDA = "cuda"
"""What ONNX Runtime calls the device."""

STREAM = 0
"""The default one of a context: nobody has to give it back."""


class Memory(Protocol):
    """Bytes on the device, which are freed when nothing holds it any more."""

    def data_ptr(self) -> int: ...


class CudaRows(DeviceRows[CacheBuffers]):
    """Rows in the memory of the GPU that the provider runs on, and one more of each cache, through which rows change places.

    Args:
        device: the driver of the same GPU.
        memory: makes so many bytes of it, for a cache of this description (see `provider_memory`).

    Raises:
        MachineError: the GPU has not so much memory.
    """

    def __init__(
        self, device: Device, memory: Callable[[int, str], Memory], shapes: CacheShapes, count: int, capacity: int
    ) -> None:
        super().__init__(device, STREAM, count, capacity)
        self._held: list[Memory] = []
        self._arrays: dict[str, DeviceArray] = {}
        for (heads, width), dtype, names in alike_caches(shapes):
            planned = RowStack(0, (len(names), count + 1, heads, capacity, width), dtype.itemsize)
            held = memory(planned.nbytes, f"{count} times {capacity} positions")
            stack = RowStack(held.data_ptr(), planned.shape, planned.item)
            device.clear(stack.address, stack.nbytes, STREAM)
            self._held.append(held)
            self._stacks.append(stack)
            for place, name in enumerate(names):
                self._arrays[name] = DeviceArray(stack.layer(place), stack.shape[1:], dtype, CUDA)
        device.synchronise(STREAM)

    def _over(self, first: int, last: int) -> CacheBuffers:
        return CacheBuffers({name: array.rows(first, last) for name, array in self._arrays.items()})

    def _spare(self, stack: RowStack) -> int:
        return stack.row(len(self.rows))

    def _move(self, moves: Iterable[Move]) -> None:
        self._device.make_current()
        super()._move(moves)
        self._device.synchronise(STREAM)


def provider_memory(ort: Any, driver: CudaDriver) -> Callable[[int, str], Memory]:
    """Memory of the provider's own allocator: OrtValues of bytes.

    Args:
        ort: the module onnxruntime.
    """

    def memory(size: int, what: str) -> Memory:
        driver.make_current()
        try:
            made: Memory = ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, CUDA, driver.device.index)
        except Exception as error:  # onnxruntime raises RuntimeError or classes of its own
            raise MachineError(
                f"{driver.device.name} has no {size / 1e6:.0f} MB left for a cache of {what}: {error}",
                f"{driver.device.memory / 1e6:.0f} MB less what weights and activations take",
                f"close other programs that use the GPU, {ADVICE}",
            ) from error
        return made

    return memory
