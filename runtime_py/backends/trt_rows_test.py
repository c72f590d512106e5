"""Rows on a device: which bytes are moved for those that enter a call, and what is held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.conftest import FOREIGN, HostDevice
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.trt_rows import DeviceRows, RowShape, TrtRow
from runtime_py.errors import MachineError, UsageError

SHAPES = {
    "past_key_values.0.key": RowShape(2, 16, 4, 4),
    "past_key_values.0.value": RowShape(3, 16, 8, 2),
    "past_key_values.1.key": RowShape(2, 16, 4, 4),
}
CAPACITY = 16
ROUNDS = st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6)
LENGTHS = st.lists(st.integers(0, CAPACITY), min_size=2, max_size=6)


class Memory:
    """Caches of rows as arrays of bytes, (heads, capacity, bytes of a position), read and written through a device."""

    def __init__(self, device: HostDevice | CudaDriver) -> None:
        self.device = device

    def read(self, row: TrtRow) -> list[np.ndarray]:
        found = []
        for name, address in row.pool.values(row.row, row.row + 1).items():
            shape = SHAPES[name]
            if isinstance(self.device, HostDevice):
                content = self.device.inside(address, shape.size)
            else:
                content = np.empty(shape.size, np.uint8)
                self.device.download(content, address, 0)
                self.device.synchronise(0)
            found.append(content.reshape(shape.heads, shape.capacity, -1))
        return found

    def fill(self, row: TrtRow, length: int, byte: int) -> None:
        for name, content in zip(row.pool.values(row.row, row.row + 1), self.read(row), strict=True):
            content[:, :length] = byte
            if isinstance(self.device, CudaDriver):
                self.device.upload(row.pool.values(row.row, row.row + 1)[name], content, 0)
                self.device.synchronise(0)
        row.length = length

    def holds(self, row: TrtRow, length: int, byte: int) -> bool:
        return row.length == length and all((content[:, :length] == byte).all() for content in self.read(row))


def check(device: HostDevice | CudaDriver, lengths: list[int], rounds: list[set[int]]) -> None:
    """Rows that come together keep what they hold, and so do those that make room; a copy takes a beginning alone."""
    memory, pool = Memory(device), DeviceRows(device, 0, SHAPES, len(lengths), CAPACITY)
    assert all((content == 0).all() for row in pool.rows for content in memory.read(row))
    rows = list(pool.rows)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        memory.fill(row, length, number + 1)
    for chosen in rounds:
        wanted = [rows[place] for place in sorted(chosen) if place < len(lengths)]
        first = pool.gather(wanted)
        assert {row.row for row in wanted} == set(range(first, first + len(wanted)))
        kept = zip(rows, lengths, strict=True)
        assert all(memory.holds(row, length, number + 1) for number, (row, length) in enumerate(kept))
    pool.copy(rows[0], rows[-1], lengths[0])
    assert memory.holds(rows[-1], lengths[0], 1) and memory.holds(rows[0], lengths[0], 1)
    behind = max(lengths[0], lengths[-1])
    assert all((content[:, behind:] != 1).all() for content in memory.read(rows[-1]))
    pool.free()


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, rounds=ROUNDS)
def test_rows_keep_what_they_hold(lengths: list[int], rounds: list[set[int]]) -> None:
    device = HostDevice()
    check(device, lengths, rounds)
    assert not device.held


@pytest.mark.gpu
@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, rounds=ROUNDS)
def test_rows_on_a_gpu_keep_what_they_hold(lengths: list[int], rounds: list[set[int]]) -> None:
    check(CudaDriver(), lengths, rounds)


def test_a_call_is_given_the_address_of_its_first_row() -> None:
    pool = DeviceRows(HostDevice(), 0, SHAPES, 3, CAPACITY)
    whole, rest = pool.values(0, 3), pool.values(2, 3)
    assert {name: rest[name] - whole[name] for name in whole} == {name: 2 * shape.size for name, shape in SHAPES.items()}


def test_nothing_beside_the_filled_positions_is_moved() -> None:
    device = HostDevice()
    pool = DeviceRows(device, 0, SHAPES, 3, CAPACITY)
    memory, (one, other, _) = Memory(device), pool.rows
    for row in pool.rows:
        for content in memory.read(row):
            content[:] = FOREIGN
    memory.fill(one, 3, 1)
    memory.fill(other, 5, 2)
    pool.copy(one, other, 2)
    assert all((content[:, 5:] == FOREIGN).all() and (content[:, 2:5] == 2).all() for content in memory.read(other))


def test_a_copy_that_cannot_be_is_refused() -> None:
    pool = DeviceRows(HostDevice(), 0, SHAPES, 2, CAPACITY)
    stranger = DeviceRows(HostDevice(), 0, SHAPES, 2, CAPACITY).rows[0]
    for target, length in ((pool.rows[1], 1), (stranger, 0), (pool.rows[0], 0)):
        with pytest.raises(UsageError, match="positions that are filled"):
            pool.copy(pool.rows[0], target, length)


def test_a_newer_sequence_takes_over() -> None:
    pool = DeviceRows(HostDevice(), 0, SHAPES, 1, CAPACITY)
    old = pool.renewed(4)
    new = pool.renewed(8)
    assert (pool.holds(old), pool.holds(new), new.capacity, new.length) == (False, True, 8, 0)
    pool.free()
    assert not pool.holds(new)


class SmallDevice(HostDevice):
    """Has room for two buffers of two rows."""

    def allocate(self, size: int) -> int:
        if len(self.held) == 2:
            raise MachineError(f"the GPU has no {size / 1e6:.0f} MB left", "memory", "close other programs")
        return super().allocate(size)


def test_what_does_not_fit_holds_nothing() -> None:
    device = SmallDevice()
    with pytest.raises(MachineError, match="caches of 2 sequences: the GPU has no") as caught:
        DeviceRows(device, 0, SHAPES, 2, CAPACITY)
    assert "--slots" in caught.value.next_step and not device.held
