"""The product with a matrix of MatMulNBits reads and writes no byte outside of its arrays."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import subprocess
import sys

import numpy as np
import pytest
import tvm_ffi

from export.processor.block_panels import MANY
from export.processor.block_product import BlockMatrix
from export.processor.block_product_test import NARROW, compiled, drawn, spread, variants


def guarded(array: np.ndarray, first: bool) -> np.ndarray:
    """The same numbers between pages that must not be touched, right behind the first or right before the last."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    room = mmap.mmap(-1, size + 2 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for place in (begin, begin + page + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(place), page, 0) == 0
    made = np.frombuffer(room, array.dtype, array.size, page if first else page + size - array.nbytes).reshape(array.shape)
    made[...] = array
    return made


def call_between_guards() -> None:
    """Every variant that this machine runs; a byte that is read or written outside of an array ends the process."""
    for variant in variants():
        for matrix in (BlockMatrix(35, 576, 64, 4), BlockMatrix(32, 576, 64, 4), NARROW):
            library, given_ = compiled(matrix, variant), drawn(matrix)
            for rows, first in itertools.product((1, 3, 4, MANY + 1), (True, False)):
                arrays = spread(rows, matrix.columns, matrix.block), given_.codes, given_.scales
                out = np.full((rows, matrix.rows), np.nan, np.float32)
                kept = [guarded(array, first) for array in (*arrays, out)]
                library["product"](*(tvm_ffi.from_dlpack(array, require_alignment=1) for array in kept))
                assert np.isfinite(kept[3]).all()


@pytest.mark.skipif(not variants(), reason="needs an x86-64 processor with AVX2")
def test_nothing_outside_of_the_arrays_is_touched() -> None:
    program = f"from {__name__} import call_between_guards; call_between_guards()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
