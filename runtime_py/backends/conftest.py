"""Memory of this machine in the place of a GPU's, so that what is told to the driver can be carried out and looked at."""

from __future__ import annotations

import numpy as np

from runtime_py.backends.cuda_driver import PitchedCopy

ALIGNED = 256
FOREIGN = 0xA5
"""What every byte is before anybody writes it."""


class HostDevice:
    """Does what CUDA's documentation says of the calls that rows of caches take; addresses are real ones."""

    def __init__(self) -> None:
        self.held: dict[int, np.ndarray] = {}

    def make_current(self) -> None:
        return

    def synchronise(self, stream: int) -> None:
        return

    def allocate(self, size: int) -> int:
        room = np.full(size + ALIGNED, FOREIGN, np.uint8)
        address = -(-int(room.ctypes.data) // ALIGNED) * ALIGNED
        self.held[address] = room
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    def clear(self, address: int, size: int, stream: int) -> None:
        self.inside(address, size)[:] = 0

    def copy(self, asked: PitchedCopy, stream: int) -> None:
        assert asked.width <= asked.pitch
        for line in (depth * asked.slice_height + row for depth in range(asked.depth) for row in range(asked.height)):
            begin = line * asked.pitch
            self.inside(asked.target + begin, asked.width)[:] = self.inside(asked.source + begin, asked.width)

    def inside(self, address: int, size: int) -> np.ndarray:
        """These bytes, which lie in one allocation."""
        room = self.held[max(first for first in self.held if first <= address)]
        begin = address - int(room.ctypes.data)
        assert begin + size <= len(room)
        return room[begin : begin + size]
