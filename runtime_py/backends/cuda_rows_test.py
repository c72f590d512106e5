"""Rows in a GPU's memory: which bytes a copy moves, and on a GPU that they move."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.cuda_driver import CudaDriver, PitchedCopy
from runtime_py.backends.cuda_rows import CUDA, STREAM, CudaRows, RowStack
from runtime_py.backends.ort_decoder import DeviceArray
from runtime_py.backends.ort_rows import CacheShapes, OrtRow
from runtime_py.errors import MachineError

SHAPES: CacheShapes = {
    f"past_key_values.{layer}.{part}": ((2, 3), np.dtype(dtype))
    for layer in range(2)
    for part, dtype in (("key", np.float32), ("value", np.float16))
}
CAPACITY = 10


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
    obey(array, RowStack(0, shape, array.dtype).moved(source, target, length))
    assert np.array_equal(array, wanted)


def obey(memory: np.ndarray, asked: PitchedCopy) -> None:
    """Do what cuda.h says of CUDA_MEMCPY3D to an array at address 0."""
    taken, given = memory.reshape(-1).view(np.uint8).copy(), memory.reshape(-1).view(np.uint8)
    for line in (depth * asked.slice_height + row for depth in range(asked.depth) for row in range(asked.height)):
        begin = line * asked.pitch
        given[asked.target + begin :][: asked.width] = taken[asked.source + begin :][: asked.width]


def test_rows_of_a_layer_lie_behind_one_another() -> None:
    stack = RowStack(1000, (3, 4, 2, 10, 8), np.dtype(np.float16))
    layer = stack.layer(2)
    assert (layer.address, layer.shape) == (1000 + 2 * 4 * 2 * 10 * 8 * 2, (4, 2, 10, 8))
    assert layer.rows(1, 3) == DeviceArray(layer.address + 2 * 10 * 8 * 2, (2, 2, 10, 8), np.dtype(np.float16), CUDA)


@pytest.fixture
def driver() -> CudaDriver:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    try:
        return CudaDriver()
    except MachineError as error:
        pytest.skip(error.what)


@pytest.mark.gpu
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    rounds=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6),
)
def test_rows_on_a_gpu_keep_what_they_hold(driver: CudaDriver, lengths: list[int], rounds: list[set[int]]) -> None:
    import onnxruntime

    pool = CudaRows(onnxruntime, driver, SHAPES, len(lengths), CAPACITY)
    for number, (row, length) in enumerate(zip(pool.rows, lengths, strict=True)):
        assert all((content == 0).all() for content in contents(driver, row))
        for array in row.buffers.values():
            filled = np.zeros(array.shape, array.dtype)
            filled[:, :, :length] = number + 1
            driver.upload(array.address, filled, STREAM)
        driver.synchronise(STREAM)
        row.length = length
    for chosen in rounds:
        wanted = [pool.rows[place] for place in sorted(chosen) if place < len(lengths)]
        pool.gather(wanted)
        for number, (row, length) in enumerate(zip(pool.rows, lengths, strict=True)):
            assert all((content[:, :, :length] == number + 1).all() for content in contents(driver, row))
    first, last = pool.rows[0], pool.rows[-1]
    pool.copy(first, last, lengths[0])
    assert last.length == lengths[0]
    assert all((content[:, :, : lengths[0]] == 1).all() for content in contents(driver, last))


def contents(driver: CudaDriver, row: OrtRow) -> list[np.ndarray]:
    """What lies in a row's caches."""
    read = []
    for array in row.buffers.values():
        content = np.empty(array.shape, array.dtype)
        driver.download(content, array.address, STREAM)
        read.append(content)
    driver.synchronise(STREAM)
    return read


def test_the_structure_of_a_copy_has_the_size_of_the_drivers() -> None:
    from runtime_py.backends.cuda_driver import _Memcpy3D

    assert ctypes.sizeof(_Memcpy3D) == 200  # cuda.h, CUDA_MEMCPY3D_v2 on 64 bits
