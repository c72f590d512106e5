"""Rows keep what they hold, whoever gives the memory; on a device, which bytes are moved for those that enter a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.conftest import FOREIGN, HostDevice
from runtime_py.backends.cuda_driver import CudaDriver, PitchedCopy
from runtime_py.backends.cuda_rows import CUDA, CudaRows, provider_memory
from runtime_py.backends.device_rows import RowStack
from runtime_py.backends.ort_decoder import DeviceArray
from runtime_py.backends.ort_rows import CacheShapes, HostRows
from runtime_py.backends.row_pool import PoolRow, RowPool
from runtime_py.backends.trt_rows import RowShape, TrtRows
from runtime_py.errors import MachineError, UsageError

CAPACITY = 16
CACHES: CacheShapes = {
    "past_key_values.0.key": ((2, 4), np.dtype(np.float32)),
    "past_key_values.0.value": ((3, 8), np.dtype(np.float16)),
    "past_key_values.1.key": ((2, 4), np.dtype(np.float32)),
}
"""Heads and width of a cache, and its dtype: two of one shape, one of another."""

SHAPES = {name: RowShape(heads, CAPACITY, width, dtype.itemsize) for name, ((heads, width), dtype) in CACHES.items()}
ROUNDS = st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6)
LENGTHS = st.lists(st.integers(0, CAPACITY), min_size=2, max_size=6)

Device = HostDevice | CudaDriver
Make = Callable[[Device, int], RowPool[Any]]
"""A pool of so many rows, on a device unless it is of this machine."""


class Held:
    """Memory of a device, as ONNX Runtime gives it."""

    def __init__(self, device: HostDevice, size: int, what: str) -> None:
        self._address = device.allocate(size)

    def data_ptr(self) -> int:
        return self._address


def of_onnx_runtime(device: Device, count: int) -> CudaRows:
    if isinstance(device, HostDevice):
        return CudaRows(device, partial(Held, device), CACHES, count, CAPACITY)
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    return CudaRows(device, provider_memory(onnxruntime, device), CACHES, count, CAPACITY)


def of_tensorrt(device: Device, count: int) -> TrtRows:
    return TrtRows(device, 0, SHAPES, count, CAPACITY)


def of_this_machine(_: Device, count: int) -> HostRows:
    return HostRows(lambda array: array, CACHES, count, CAPACITY)


def driver() -> CudaDriver:
    try:
        return CudaDriver()
    except MachineError as error:
        pytest.skip(error.what)


ON_A_DEVICE = [of_onnx_runtime, of_tensorrt]
KINDS = pytest.mark.parametrize("made", [*ON_A_DEVICE, of_this_machine])


class Memory:
    """Caches of rows as arrays of bytes, (heads, capacity, bytes of a position); those on a device are read and written
    through it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device

    def read(self, row: PoolRow[Any]) -> list[np.ndarray]:
        found = []
        for place, shape in self._places(row):
            if isinstance(place, np.ndarray):
                content = place.view(np.uint8)
            elif isinstance(self.device, HostDevice):
                content = self.device.inside(place, shape.size)
            else:
                content = np.empty(shape.size, np.uint8)
                self.device.download(content, place, 0)
                self.device.synchronise(0)
            found.append(content.reshape(shape.heads, shape.capacity, -1))
        return found

    def fill(self, row: PoolRow[Any], length: int, byte: int) -> None:
        for (place, _), content in zip(self._places(row), self.read(row), strict=True):
            content[:, :length] = byte
            if isinstance(self.device, CudaDriver) and isinstance(place, int):
                self.device.upload(place, content, 0)
                self.device.synchronise(0)
        row.length = length

    def holds(self, row: PoolRow[Any], length: int, byte: int) -> bool:
        return row.length == length and all((content[:, :length] == byte).all() for content in self.read(row))

    @staticmethod
    def _places(row: PoolRow[Any]) -> list[tuple[int | np.ndarray, RowShape]]:
        """What a decoder call of this row alone is told of each cache: its address, or the array itself."""
        told: list[tuple[int | np.ndarray, RowShape]] = []
        for name, where in row.buffers.items():
            if not isinstance(where, int):
                (heads, width), dtype = CACHES[name]
                assert (where.shape, where.dtype) == ((1, heads, CAPACITY, width), dtype)
                assert not isinstance(where, DeviceArray) or where.device == CUDA
            told.append((where.address if isinstance(where, DeviceArray) else where, SHAPES[name]))
        assert len(told) == len(CACHES)
        return told


def check(memory: Memory, pool: RowPool[Any], lengths: list[int], rounds: list[set[int]]) -> None:
    """Rows that come together keep what they hold, and so do those that make room; a copy takes a beginning alone."""
    assert all((content == 0).all() for row in pool.rows for content in memory.read(row))
    rows = list(pool.rows)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        memory.fill(row, length, number + 1)
    for chosen in rounds:
        wanted = [rows[place] for place in sorted(chosen) if place < len(lengths)]
        first = pool.gather(wanted)
        assert {row.row for row in wanted} == set(range(first, first + len(wanted)))
        assert sorted(row.row for row in rows) == list(range(len(rows)))
        kept = zip(rows, lengths, strict=True)
        assert all(memory.holds(row, length, number + 1) for number, (row, length) in enumerate(kept))
    pool.copy(rows[0], rows[-1], lengths[0])
    assert memory.holds(rows[-1], lengths[0], 1) and memory.holds(rows[0], lengths[0], 1)
    behind = max(lengths[0], lengths[-1])
    assert all((content[:, behind:] != 1).all() for content in memory.read(rows[-1]))


@KINDS
@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, rounds=ROUNDS)
def test_rows_keep_what_they_hold(made: Make, lengths: list[int], rounds: list[set[int]]) -> None:
    device = HostDevice()
    pool = made(device, len(lengths))
    check(Memory(device), pool, lengths, rounds)
    if isinstance(pool, TrtRows):
        pool.free()
        assert not device.held


@pytest.mark.gpu
@pytest.mark.parametrize("made", ON_A_DEVICE)
@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, rounds=ROUNDS)
def test_rows_on_a_gpu_keep_what_they_hold(made: Make, lengths: list[int], rounds: list[set[int]]) -> None:
    device = driver()
    pool = made(device, len(lengths))
    check(Memory(device), pool, lengths, rounds)
    if isinstance(pool, TrtRows):
        pool.free()


@KINDS
def test_nothing_beside_the_filled_positions_is_moved(made: Make) -> None:
    device = HostDevice()
    pool, memory = made(device, 3), Memory(device)
    one, other, _ = pool.rows
    for row in pool.rows:
        for content in memory.read(row):
            content[:] = FOREIGN
    memory.fill(one, 3, 1)
    memory.fill(other, 5, 2)
    pool.copy(one, other, 2)
    assert all((content[:, 5:] == FOREIGN).all() and (content[:, 2:5] == 2).all() for content in memory.read(other))


@pytest.mark.parametrize("made", ON_A_DEVICE)
@pytest.mark.parametrize("lengths", [(5, 0, 3), (5, 4, 0)])
def test_a_row_whose_new_place_is_empty_is_copied_once(
    made: Make, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two is the empty one; two filled rows need a third place and three copies."""
    counts = []
    for filled in (lengths, tuple(length or 1 for length in lengths)):
        device, copies = HostDevice(), list[PitchedCopy]()
        pool, memory = made(device, 3), Memory(device)
        for row, length in zip(pool.rows, filled, strict=True):
            memory.fill(row, length, row.row + 1)
        copy = device.copy
        monkeypatch.setattr(
            device, "copy", lambda asked, stream, copy=copy, to=copies: to.append(asked) or copy(asked, stream)
        )
        pool.gather([pool.rows[0], pool.rows[2]])
        counts.append(len(copies))
    assert counts[1] == 3 * counts[0] > 0


@KINDS
def test_a_copy_that_cannot_be_is_refused(made: Make) -> None:
    pool, stranger = (made(HostDevice(), 2) for _ in range(2))
    row, other, foreign = *pool.rows, stranger.rows[0]
    for source, target, length in ((row, other, 1), (row, other, -1), (row, foreign, 0), (foreign, row, 0), (row, row, 0)):
        with pytest.raises(UsageError, match="positions that are filled"):
            pool.copy(source, target, length)


@given(shape=st.tuples(*(st.integers(1, 4) for _ in range(5))), data=st.data(), dtype=st.sampled_from([np.float16, np.int8]))
def test_a_copy_names_the_first_positions_of_every_layer_and_head(
    shape: tuple[int, int, int, int, int], data: st.DataObject, dtype: type
) -> None:
    array: np.ndarray = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    rows, capacity = shape[1], shape[3]
    source, target = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, rows - 1))
    length = data.draw(st.integers(0, capacity))
    wanted = array.copy()
    wanted[:, target, :, :length] = array[:, source, :, :length]
    stack = RowStack(0, shape, array.dtype.itemsize)
    obey(array, stack.moved(stack.row(source), stack.row(target), length))
    assert np.array_equal(array, wanted)


def obey(memory: np.ndarray, asked: PitchedCopy) -> None:
    """Do what cuda.h says of CUDA_MEMCPY3D to an array at address 0."""
    taken, given = memory.reshape(-1).view(np.uint8).copy(), memory.reshape(-1).view(np.uint8)
    for line in (depth * asked.slice_height + row for depth in range(asked.depth) for row in range(asked.height)):
        begin = line * asked.pitch
        given[asked.target + begin :][: asked.width] = taken[asked.source + begin :][: asked.width]


def test_rows_of_a_layer_lie_behind_one_another() -> None:
    stack = RowStack(1000, (3, 4, 2, 10, 8), 2)
    layer = DeviceArray(stack.layer(2), stack.shape[1:], np.dtype(np.float16), CUDA)
    assert layer.address == 1000 + 2 * 4 * 2 * 10 * 8 * 2 and stack.row(1) == 1000 + 2 * 10 * 8 * 2
    assert layer.rows(1, 3) == DeviceArray(layer.address + 2 * 10 * 8 * 2, (2, 2, 10, 8), np.dtype(np.float16), CUDA)


def test_an_engine_is_given_the_address_of_its_first_row() -> None:
    pool = of_tensorrt(HostDevice(), 3)
    whole, rest = pool.values(0, 3), pool.values(2, 3)
    assert {name: rest[name] - whole[name] for name in whole} == {name: 2 * shape.size for name, shape in SHAPES.items()}


def test_a_newer_sequence_takes_over() -> None:
    pool = of_tensorrt(HostDevice(), 1)
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
        of_tensorrt(device, 2)
    assert "--slots" in caught.value.next_step and not device.held


def test_the_structure_of_a_copy_has_the_size_of_the_drivers() -> None:
    from runtime_py.backends.cuda_driver import _Memcpy3D

    assert ctypes.sizeof(_Memcpy3D) == 200  # cuda.h, CUDA_MEMCPY3D_v2 on 64 bits
