"""Products whose inputs are not rounded: the numbers of ONNX Runtime and of their formula, and what is never read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.block_product import BlockMatrix
from export.processor.conftest import ARM64, X86, compiled, drawn, of_processor
from export.processor.float_product import MANY, Columns, float_product, unsupported
from export.processor.targets import TARGETS

MATRIX = BlockMatrix(70, 336, 32, 8)
"""Rows that are no whole panel, and a last block that is filled up."""

NARROW = BlockMatrix(5, 20, 32, 8)
ROWS = (1, 3, 4, 7, MANY, MANY + 54)
PLACES = {"v3": "x86-64-v3", "v4": "x86-64-vnni"}


def made(place: str, matrix: BlockMatrix, weights: int = 0, into: Columns | None = None) -> Any:
    byte = block_instructions(Target(TARGETS[PLACES[place]]))
    return of_processor(place, float_product, matrix, byte, weights, into)


def parts(matrix: BlockMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales, and what they stand for: float64 (N, K)."""
    numbers = np.random.default_rng(matrix.rows)
    shape = matrix.rows, matrix.blocks
    codes = numbers.integers(0, 256, (*shape, matrix.block), dtype=np.uint8)
    codes.reshape(matrix.rows, -1)[:, matrix.columns :] = 128
    scales = (numbers.uniform(0.01, 0.02, shape) * numbers.choice([-1, 1], shape)).astype(np.float16)
    whole = (codes.astype(np.float64) - 128) * scales.astype(np.float64)[..., None]
    return codes, scales, whole.reshape(matrix.rows, -1)[:, : matrix.columns]


def of_onnx(matrix: BlockMatrix, x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    held = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales.astype(np.float32), "scales")]
    sizes: dict[str, Any] = {"N": matrix.rows, "K": matrix.columns, "block_size": matrix.block, "bits": 8}
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", accuracy_level=0, **sizes
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("place", X86)
@pytest.mark.parametrize("matrix", [MATRIX, NARROW, BlockMatrix(33, 256, 128, 8)])
def test_a_product_is_that_of_the_formula_and_of_onnx_runtime_and_a_row_has_its_bits_alone(
    place: str, matrix: BlockMatrix
) -> None:
    codes, scales, whole = parts(matrix)
    kernel = made(place, matrix)
    for count in ROWS:
        x = drawn(count, count, matrix.columns)
        out, alone = np.ones((count, matrix.rows), np.float32), np.ones((1, matrix.rows), np.float32)
        kernel(x, codes, scales, out)
        expected = x.astype(np.float64) @ whole.T
        # a sum of float32 numbers, none of which is rounded to bytes: that would be a thousand times as far
        assert np.abs(out - expected).max() < 1e-6 * np.abs(expected).max()
        assert np.abs(out - of_onnx(matrix, x, codes, scales)).max() < 2e-6 * np.abs(expected).max()
        for row in range(0, count, 5):
            kernel(x[row : row + 1], codes, scales, alone)
            np.testing.assert_array_equal(alone[0], out[row])


@pytest.mark.parametrize("place", X86)
def test_blocks_of_zeros_are_not_read_and_change_no_bit(place: str) -> None:
    codes, scales, whole = parts(MATRIX)
    unreadable = scales.copy()
    unreadable[:, 2:9] = np.nan
    for count in (1, 5, MANY + 3):
        x = drawn(count, count, MATRIX.columns)
        x[:, 64:288] = 0
        x[:, 100] = -0.0
        out, read = np.ones((2, count, MATRIX.rows), np.float32)
        made(place, MATRIX)(x, codes, unreadable, out)
        expected = x.astype(np.float64) @ whole.T
        assert np.abs(out - expected).max() < 1e-6 * np.abs(expected).max()
        # a row beside one that has numbers in these blocks
        other = np.concatenate([x, drawn(7, 1, MATRIX.columns)])
        beside = np.ones((count + 1, MATRIX.rows), np.float32)
        made(place, MATRIX)(other, codes, scales, beside)
        np.testing.assert_array_equal(beside[:count], out)
        made(place, MATRIX)(np.zeros_like(x), codes, unreadable, read)
        assert not read.any()
    x = np.zeros((1, MATRIX.columns), np.float32)
    x[0, 70] = np.nan
    made(place, MATRIX)(x, codes, scales, out[:1])
    assert np.isnan(out[0]).all()


@pytest.mark.parametrize("place", X86)
def test_rows_of_the_matrix_without_weight_are_not_read(place: str) -> None:
    matrix = BlockMatrix(128, 96, 32, 8)
    codes, scales, whole = parts(matrix)
    weights = np.zeros(64, np.float32)
    weights[:32] = drawn(1, 32)
    unreadable = scales.copy()
    unreadable.reshape(2, 64, -1)[:, 32:] = np.nan
    for count in (1, 5, MANY + 3):
        x = drawn(count, count, matrix.columns)
        out = np.ones((count, matrix.rows), np.float32)
        made(place, matrix, 64)(x, codes, unreadable, weights, out)
        expected = (x.astype(np.float64) @ whole.T) * np.tile(weights, 2)
        assert np.abs(out - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("place", X86)
def test_a_product_is_added_to_columns_of_others(place: str) -> None:
    codes, scales, _ = parts(MATRIX)
    for count in (0, 1, 5, MANY + 3):
        # arrays of no rows have the steps of one
        x, out, total = (drawn(9, count + 1, width)[:count] for width in (MATRIX.columns, MATRIX.rows, 100))
        made(place, MATRIX)(x, codes, scales, out)
        expected = total.copy()
        expected[:, 13:83] += out
        made(place, MATRIX, 0, Columns(100, 13))(x, codes, scales, total)
        np.testing.assert_array_equal(total, expected)


def test_what_is_not_read_is_refused() -> None:
    byte = block_instructions(Target(TARGETS["x86-64-v3"]))
    assert byte is not None and not unsupported(MATRIX)
    assert "4 bits" in unsupported(BlockMatrix(70, 336, 32, 4))
    for matrix, weights, into in ((BlockMatrix(4, 8, 24, 8), 0, None), (MATRIX, 3, None), (MATRIX, 0, Columns(70, 1))):
        with pytest.raises(ValueError, match="no product is written"):
            float_product(matrix, byte, weights, into)


def test_a_kernel_is_compiled_for_arm64() -> None:
    byte = block_instructions(Target(ARM64))
    assert byte is not None
    assert compiled(float_product(MATRIX, byte, 35), ARM64) is not None
