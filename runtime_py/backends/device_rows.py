"""Rows of caches in a GPU's memory, which its driver moves there: under every runtime whose calls are given rows by address.

A copy names the first positions of every head of a row, in all caches that lie behind one another at once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from runtime_py.backends.cuda_driver import PitchedCopy
from runtime_py.backends.row_pool import Buffers, PoolRow, RowPool


class Device(Protocol):
    """What rows need of `runtime_py.backends.cuda_driver.CudaDriver`."""

    def make_current(self) -> None: ...
    def synchronise(self, stream: int) -> None: ...
    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def clear(self, address: int, size: int, stream: int) -> None: ...
    def copy(self, asked: PitchedCopy, stream: int) -> None: ...


@dataclass(frozen=True)
class RowStack:
    """Caches of one shape that lie behind one another: an array (layers, rows, kv_heads, capacity, width) on the device.

    Attributes:
        item: bytes of a number.
    """

    address: int
    shape: tuple[int, int, int, int, int]
    item: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.item

    def layer(self, place: int) -> int:
        """The address of a layer's first row."""
        return self.address + place * self.nbytes // self.shape[0]

    def row(self, place: int) -> int:
        """The address of a row in the first layer."""
        return self.address + place * math.prod(self.shape[2:]) * self.item

    def moved(self, source: int, target: int, length: int) -> PitchedCopy:
        """The copy of the first ``length`` positions of every layer and head from one row's address to another's."""
        layers, rows, heads, capacity, width = self.shape
        position = width * self.item
        return PitchedCopy(
            source,
            target,
            width=length * position,
            height=heads,
            depth=layers,
            pitch=capacity * position,
            slice_height=heads if layers == 1 else rows * heads,
        )


Move = tuple[RowStack, int, int, int]
"""Positions of a stack's rows: from which address, to which, and how many."""


class DeviceRows(RowPool[Buffers]):
    """Rows of stacks, which whoever has the memory adds.

    Args:
        stream: of every copy; what a decoder call does there comes before or after.
    """

    def __init__(self, device: Device, stream: int, count: int, capacity: int) -> None:
        super().__init__(count, capacity)
        self._device, self._stream = device, stream
        self._stacks: list[RowStack] = []

    def _copy(self, source: PoolRow[Buffers], target: PoolRow[Buffers], length: int) -> None:
        self._move((stack, stack.row(source.row), stack.row(target.row), length) for stack in self._stacks)

    def _exchange(self, one: PoolRow[Buffers], other: PoolRow[Buffers]) -> None:
        moves: list[Move] = []
        for stack in self._stacks:
            first, second = stack.row(one.row), stack.row(other.row)
            if one.length and other.length:
                kept = self._spare(stack)
                moves += [(stack, first, kept, one.length), (stack, second, first, other.length)]
                moves += [(stack, kept, second, one.length)]
            elif one.length:
                moves += [(stack, first, second, one.length)]
            elif other.length:
                moves += [(stack, second, first, other.length)]
        self._move(moves)

    def _move(self, moves: Iterable[Move]) -> None:
        """One after the other; complete when the stream is."""
        for stack, source, target, length in moves:
            self._device.copy(stack.moved(source, target, length), self._stream)

    @abstractmethod
    def _spare(self, stack: RowStack) -> int:
        """The address of a row of this stack's size that nobody has."""
