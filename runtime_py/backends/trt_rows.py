"""Caches of several sequences as rows of buffers on the device, for TensorRT.

A decoder call is given the address of its first row, and so takes rows that lie next to each other; each is written in place
at its own length (TensorRT's KVCacheUpdate has a write index a row).

Source: docs.nvidia.com/deeplearning/tensorrt ("KV Cache"; IExecutionContext.set_tensor_address: aligned to 256 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from runtime_py.backends.device_rows import Device, DeviceRows, RowStack
from runtime_py.backends.row_pool import ADVICE, PoolRow
from runtime_py.errors import MachineError

ALIGNED = 256
"""Bytes; every address that an engine is given is a multiple."""

TrtRow = PoolRow[Mapping[str, int]]
"""One sequence; a call is given the addresses of its rows by cache input."""


@dataclass(frozen=True)
class RowShape:
    """A sequence's part of one cache tensor: (heads, capacity, width) of ``item`` bytes a number."""

    heads: int
    capacity: int
    width: int
    item: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(astuple(self))


class TrtRows(DeviceRows[Mapping[str, int]]):
    """Buffers (count, heads, capacity, width) by cache input, zeroed: what is masked out must still be a number.

    Args:
        capacity: positions that a row may use, at most those of its shape.

    Raises:
        MachineError: the device has no such room; nothing is held then.
    """

    def __init__(self, device: Device, stream: int, shapes: Mapping[str, RowShape], count: int, capacity: int) -> None:
        super().__init__(device, stream, count, capacity)
        self._shapes, self._kept = shapes, 0
        try:
            for shape in shapes.values():
                address = device.allocate(count * shape.size)
                stack = RowStack(address, (1, count, shape.heads, shape.capacity, shape.width), shape.item)
                self._stacks.append(stack)
                device.clear(address, stack.nbytes, stream)
        except MachineError as error:
            self.free()
            if count == 1:
                raise
            raise MachineError(
                f"caches of {count} sequences: {error.what}", error.expected, f"{ADVICE} or --batch"
            ) from error

    def renewed(self, capacity: int) -> TrtRow:
        """An empty sequence in place of the only one there is, which is not held any longer."""
        self.rows[:] = [PoolRow(self, capacity)]
        return self.rows[0]

    def free(self) -> None:
        """Give the memory back; the rows hold nothing any longer."""
        for address in (*(stack.address for stack in self._stacks), self._kept):
            if address:
                self._device.free(address)
        self._stacks.clear()
        self._values.clear()
        self._kept, self.rows = 0, []

    def _over(self, first: int, last: int) -> Mapping[str, int]:
        return {name: stack.row(first) for name, stack in zip(self._shapes, self._stacks, strict=True)}

    def _spare(self, stack: RowStack) -> int:
        if not self._kept:
            self._kept = self._device.allocate(max(shape.size for shape in self._shapes.values()))
        return self._kept
