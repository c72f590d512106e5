"""Caches of several sequences as rows of buffers on the device.

A decoder call is given the address of its first row, and so takes rows that lie next to each other; each is written in place
at its own length (TensorRT's KVCacheUpdate has a write index a row).

Source: docs.nvidia.com/deeplearning/tensorrt ("KV Cache"; IExecutionContext.set_tensor_address: aligned to 256 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime_py.backends.cuda_driver import PitchedCopy
from runtime_py.backends.row_places import RowPlaces
from runtime_py.errors import MachineError, UsageError

ALIGNED = 256
"""Bytes; every address that an engine is given is a multiple."""


class Device(Protocol):
    """What rows need of `runtime_py.backends.cuda_driver.CudaDriver`."""

    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def clear(self, address: int, size: int, stream: int) -> None: ...
    def copy(self, asked: PitchedCopy, stream: int) -> None: ...


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
        return math.prod((self.heads, self.capacity, self.width, self.item))

    def moved(self, source: int, target: int, length: int) -> PitchedCopy:
        """The copy of the first ``length`` positions of every head from one address to another."""
        position = self.width * self.item
        pitch = self.capacity * position
        return PitchedCopy(
            source, target, width=length * position, height=self.heads, depth=1, pitch=pitch, slice_height=self.heads
        )


@dataclass(eq=False)
class TrtRow:
    """One sequence of a pool; ``row`` changes when `DeviceRows.gather` moves it."""

    pool: DeviceRows
    capacity: int
    row: int = 0
    length: int = 0


class DeviceRows:
    """Buffers (count, heads, capacity, width) by cache input, zeroed: what is masked out must still be a number.

    Args:
        stream: of every copy; what an engine does there comes before or after.
        capacity: positions that a row may use, at most those of its shape.

    Raises:
        MachineError: the device has no such room; nothing is held then.
    """

    def __init__(self, cuda: Device, stream: int, shapes: Mapping[str, RowShape], count: int, capacity: int) -> None:
        self._cuda, self._stream, self._shapes = cuda, stream, shapes
        self._addresses: dict[str, int] = {}
        self._kept = 0
        try:
            for name, shape in shapes.items():
                self._addresses[name] = cuda.allocate(count * shape.size)
                cuda.clear(self._addresses[name], count * shape.size, stream)
        except MachineError as error:
            self.free()
            if count == 1:
                raise
            raise MachineError(
                f"caches of {count} sequences: {error.what}",
                error.expected,
                "ask for fewer sequences at a time (serve --slots), or export with a smaller --context or --batch",
            ) from error
        self.rows = [TrtRow(self, capacity, row) for row in range(count)]
        self._places = RowPlaces(self.rows, self._exchange)

    def values(self, first: int, last: int) -> dict[str, int]:
        """Addresses of the rows from ``first`` on, by cache input."""
        assert first < last <= len(self.rows)
        return {name: address + first * self._shapes[name].size for name, address in self._addresses.items()}

    def gather(self, rows: Sequence[TrtRow]) -> int:
        """See runtime_py.backends.row_places.RowPlaces."""
        return self._places.gather(rows)

    def renewed(self, capacity: int) -> TrtRow:
        """An empty sequence in place of the only one there is, which is not held any longer."""
        self.rows[:] = [TrtRow(self, capacity)]
        return self.rows[0]

    def holds(self, row: TrtRow) -> bool:
        """Whether this is a row of the pool that nobody has taken over."""
        return row in self.rows

    def copy(self, source: TrtRow, target: TrtRow, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, and nothing else."""
        if not (self.holds(source) and self.holds(target)) or source is target or not 0 <= length <= source.length:
            raise UsageError(
                f"a copy of {length} positions of {source.length}", "positions that are filled", "ask for fewer positions"
            )
        for name, shape in self._shapes.items() if length else ():
            self._cuda.copy(shape.moved(self._at(name, source), self._at(name, target), length), self._stream)
        target.length = length

    def free(self) -> None:
        """Give the memory back; the rows hold nothing any longer."""
        for address in (*self._addresses.values(), self._kept):
            if address:
                self._cuda.free(address)
        self._addresses.clear()
        self._kept, self.rows = 0, []

    def _exchange(self, one: TrtRow, other: TrtRow) -> None:
        if one.length and other.length and not self._kept:
            self._kept = self._cuda.allocate(max(shape.size for shape in self._shapes.values()))
        for name, shape in self._shapes.items():
            first, second = self._at(name, one), self._at(name, other)
            moves = [(one, first, second), (other, second, first)]
            if one.length and other.length:
                moves = [(one, first, self._kept), (other, second, first), (one, self._kept, second)]
            for row, source, target in moves:
                if row.length:
                    self._cuda.copy(shape.moved(source, target, row.length), self._stream)

    def _at(self, name: str, row: TrtRow) -> int:
        return self._addresses[name] + row.row * self._shapes[name].size
