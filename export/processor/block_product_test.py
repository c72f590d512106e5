"""The product with a matrix of MatMulNBits: ONNX Runtime's numbers, NumPy's, and what is not a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tvm.ir import IRModule
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.block_panels import MANY
from export.processor.block_product import BlockMatrix, block_product, gates, unsupported
from export.processor.row_kernels import gate
from export.processor.targets import TARGETS

OPTIONS = {"tirx.disable_cse_tir": True}
FEATURES = {"x86-64-v3": ("avx2", "fma", "f16c"), "x86-64-vnni": ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")}
ROWS = (1, 2, 3, 4, 5, 8, 17, MANY, MANY + 13)
NARROW = BlockMatrix(7, 96, 32, 4)
MATRICES = [
    BlockMatrix(70, 2304, 32, 4),
    BlockMatrix(64, 1024, 32, 4),
    BlockMatrix(33, 1024, 32, 4),
    BlockMatrix(35, 576, 64, 4),
    BlockMatrix(5, 896, 128, 4),
    NARROW,
    BlockMatrix(6, 6912, 32, 4),
    BlockMatrix(32, 5760, 32, 4),
    BlockMatrix(96, 1152, 64, 4),
    BlockMatrix(32, 1408, 128, 4),
    BlockMatrix(70, 1536, 32, 8),
    BlockMatrix(33, 576, 64, 8),
    BlockMatrix(5, 896, 128, 8),
    BlockMatrix(1, 32, 32, 8),
    BlockMatrix(7, 336, 16, 8),
    BlockMatrix(32, 592, 16, 8),
]


def variants() -> list[str]:
    """Those that this machine runs."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return [name for name, needed in FEATURES.items() if flags.issuperset(needed)]


@dataclass(frozen=True)
class Drawn:
    """Random codes and scales of a matrix, and what they stand for: float64 (N, K)."""

    codes: np.ndarray
    scales: np.ndarray
    stands_for: np.ndarray


def drawn(matrix: BlockMatrix) -> Drawn:
    numbers = np.random.default_rng(matrix.rows + matrix.columns)
    shape = matrix.rows, matrix.columns // matrix.block
    codes = numbers.integers(0, 256, (*shape, matrix.block * matrix.bits // 8), dtype=np.uint8)
    scales = (numbers.uniform(0.01, 0.02, shape) * numbers.choice([-1, 1], shape)).astype(np.float16)
    single = codes if matrix.bits == 8 else np.stack([codes & 15, codes >> 4], -1).reshape(*shape, matrix.block)
    whole = (single.astype(np.float64) - 2 ** (matrix.bits - 1)) * scales.astype(np.float64)[..., None]
    return Drawn(codes, scales, whole.reshape(matrix.rows, matrix.columns))


def rounded(x: np.ndarray, block: int) -> np.ndarray:
    """What a row is taken for: float64, by the rule of accuracy_level 4."""
    blocks = x.reshape(len(x), -1, block)
    largest = np.abs(blocks).max(2, keepdims=True)
    factor = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(blocks * factor).astype(np.float64)
    return (codes * (largest / np.float32(127)).astype(np.float64)).reshape(x.shape)


def written(matrix: BlockMatrix, variant: str, name: str = "product", **kinds: bool) -> IRModule:
    """The product for a variant, under ``name``."""
    instructions = block_instructions(Target(TARGETS[variant]))
    assert instructions is not None
    return IRModule({name: block_product(matrix, instructions, **kinds).with_attr("global_symbol", name)})


def compiled(matrix: BlockMatrix, variant: str, **kinds: bool) -> tvm.runtime.Module:
    with tvm.transform.PassContext(config=OPTIONS):
        return tvm.compile(written(matrix, variant, "product", **kinds), target=Target(TARGETS[variant]))


@cache
def kernel(matrix: BlockMatrix, variant: str) -> Callable[[np.ndarray], np.ndarray]:
    """x to x times the drawn matrix, which lies where no vector is aligned."""
    given_, library = drawn(matrix), compiled(matrix, variant)
    codes, scales = (tvm_ffi.from_dlpack(shifted(array), require_alignment=2) for array in (given_.codes, given_.scales))

    def call(x: np.ndarray) -> np.ndarray:
        out = tvm.runtime.tensor(np.full((len(x), matrix.rows), 7, np.float32))
        library["product"](tvm.runtime.tensor(x), codes, scales, out)
        return out.numpy()

    return call


def shifted(array: np.ndarray) -> np.ndarray:
    """The same numbers from two bytes behind a page's begin."""
    room = np.zeros(array.nbytes + 4096 + 2, np.uint8)
    begin = -room.ctypes.data % 4096 + 2
    moved = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def session(matrix: BlockMatrix) -> onnxruntime.InferenceSession:
    """ONNX Runtime's operator with the drawn matrix."""
    given_ = drawn(matrix)
    attributes: dict[str, Any] = {"K": matrix.columns, "N": matrix.rows, "bits": matrix.bits, "block_size": matrix.block}
    names = ["x", "codes", "scales"], ["out"]
    node = helper.make_node("MatMulNBits", *names, domain="com.microsoft", accuracy_level=4, **attributes)
    parts = {"codes": given_.codes, "scales": given_.scales.astype(np.float32).reshape(-1)}
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", matrix.columns])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", matrix.rows])],
        [numpy_helper.from_array(array, name) for name, array in parts.items()],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def spread(rows: int, columns: int, block: int) -> np.ndarray:
    """Rows whose blocks differ in size, each with one value far above its others; one block is of zeros."""
    numbers = np.random.default_rng(columns)
    x = numbers.standard_normal((rows, columns)) * np.repeat(10.0 ** numbers.uniform(-3, 1, columns // block), block)
    x[:, ::block] *= 8
    x[0, :block] = 0
    return x.astype(np.float32)


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize("variant", variants())
def test_products_are_those_of_onnx_runtime_and_numpy(matrix: BlockMatrix, variant: str) -> None:
    runtime, stands_for = session(matrix), drawn(matrix).stands_for
    for rows in ROWS:
        x = spread(rows, matrix.columns, matrix.block)
        got = kernel(matrix, variant)(x)
        assert difference(got, runtime.run(None, {"x": x})[0]) < 1e-5
        assert difference(got, rounded(x, matrix.block) @ stands_for.T) < 1e-6


@pytest.mark.parametrize("rows", [5, MANY])
@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("matrix", [BlockMatrix(64, 1024, 32, 4), BlockMatrix(70, 1536, 32, 8)], ids=str)
def test_what_is_not_a_number_spoils_its_own_row_alone(variant: str, matrix: BlockMatrix, rows: int) -> None:
    call, x = kernel(matrix, variant), spread(rows, matrix.columns, matrix.block)
    clean = call(x)
    for value in (np.nan, np.inf, -np.inf):
        for column in (0, matrix.columns - 1):
            spoilt = x.copy()
            spoilt[2, column] = value
            got = call(spoilt)
            assert np.isnan(got[2]).all()
            assert np.array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize("variant", variants())
def test_a_row_is_the_same_in_any_company(matrix: BlockMatrix, variant: str) -> None:
    call, x = kernel(matrix, variant), spread(max(ROWS), matrix.columns, matrix.block)
    together = call(x)
    for rows in ROWS:
        assert np.array_equal(call(x[:rows]), together[:rows])


@pytest.mark.skipif("x86-64-vnni" not in variants(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("matrix", [BlockMatrix(64, 1024, 32, 4), BlockMatrix(96, 576, 32, 4)], ids=str)
def test_a_product_that_gates_itself_is_the_gate_of_the_product(matrix: BlockMatrix) -> None:
    variant, width = "x86-64-vnni", matrix.rows // 2
    library, given_ = compiled(matrix, variant, gated=True), drawn(matrix)
    with tvm.transform.PassContext(config=OPTIONS):
        module = IRModule({"gate": gate(width).with_attr("global_symbol", "gate")})
        gating = tvm.compile(module, target=Target(TARGETS[variant]))
    for rows in (1, 5, MANY - 1, MANY, MANY + 13):
        x = spread(rows, matrix.columns, matrix.block) * 0.05
        product = kernel(matrix, variant)(x)
        got, expected = (tvm.runtime.tensor(np.full((rows, width), np.nan, np.float32)) for _ in range(2))
        library["product"](*map(tvm.runtime.tensor, (x, given_.codes, given_.scales)), got)
        gating["gate"](tvm.runtime.tensor(product), expected)
        np.testing.assert_array_equal(got.numpy(), expected.numpy())
        half = product[:, :width].astype(np.float64)
        assert difference(got.numpy(), half / (1 + np.exp(-half)) * product[:, width:]) < 1e-6


@pytest.mark.parametrize("variant", variants())
def test_a_bias_is_added_to_the_product(variant: str) -> None:
    matrix, bias = BlockMatrix(64, 1024, 32, 4), np.linspace(-1, 1, 64, dtype=np.float32)
    library, given_ = compiled(matrix, variant, biased=True), drawn(matrix)
    for rows in (1, 5, MANY - 1, MANY + 13):
        x, got = spread(rows, matrix.columns, matrix.block), tvm.runtime.tensor(np.full((rows, 64), np.nan, np.float32))
        library["product"](*map(tvm.runtime.tensor, (x, given_.codes, given_.scales, bias)), got)
        np.testing.assert_array_equal(got.numpy(), kernel(matrix, variant)(x) + bias)


def test_matrices_whose_products_do_not_gate_themselves() -> None:
    square, narrow, vnni = BlockMatrix(64, 1024, 32, 4), BlockMatrix(70, 2304, 32, 4), "x86-64-vnni"
    for matrix, name, expected in ((square, vnni, True), (square, "x86-64-v3", False), (narrow, vnni, False)):
        byte = block_instructions(Target(TARGETS[name]))
        assert byte is not None and gates(matrix, byte) == expected
        if not expected:
            with pytest.raises(ValueError, match="gates itself"):
                written(matrix, name, gated=True)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=96, max_size=96))
@settings(max_examples=40, deadline=None)
def test_any_row_of_finite_numbers(values: list[float]) -> None:
    matrix, x = NARROW, np.array([values], np.float32)
    x[np.abs(x) < 2.0**-120] = 0
    exact = rounded(x, matrix.block) @ drawn(matrix).stands_for.T
    size = np.abs(rounded(x, matrix.block)) @ np.abs(drawn(matrix).stands_for).T
    fits = size < 3e38
    for variant in variants():
        got = kernel(matrix, variant)(x)
        assert (np.abs(got - exact)[fits] <= 1e-6 * size[fits] + 1e-37).all()


@pytest.mark.parametrize("variant", variants())
@pytest.mark.parametrize("matrix", [NARROW, BlockMatrix(1, 32, 32, 8)], ids=str)
def test_the_largest_codes_and_numbers(matrix: BlockMatrix, variant: str) -> None:
    """Sums of 16 bits hold them."""
    shape = matrix.rows, matrix.columns // matrix.block
    library, scales = compiled(matrix, variant), np.ones(shape, np.float16)
    for code, stands_for in ((0, -(2 ** (matrix.bits - 1))), (255, 2 ** (matrix.bits - 1) - 1)):
        codes = np.full((*shape, matrix.block * matrix.bits // 8), code, np.uint8)
        for sign in (1, -1):
            x, out = np.full((1, matrix.columns), 127 * sign, np.float32), np.zeros((1, matrix.rows), np.float32)
            tensors = [tvm.runtime.tensor(array) for array in (x, codes, scales, out)]
            library["product"](*tensors)
            assert (tensors[3].numpy() == 127 * sign * stands_for * matrix.columns).all()


def test_matrices_that_no_kernel_is_written_for() -> None:
    assert unsupported(BlockMatrix(8, 64, 32, 4)) == ""
    for sizes in ((8, 64, 16, 4), (8, 64, 32, 2), (8, 96, 64, 4), (0, 64, 32, 4)):
        matrix = BlockMatrix(*sizes)
        assert unsupported(matrix)
        with pytest.raises(ValueError, match="no product is written"):
            written(matrix, "x86-64-v3")


def test_instructions_of_targets() -> None:
    names = {name: type(block_instructions(Target(target))).__name__ for name, target in TARGETS.items()}
    assert names == {"x86-64-v3": "Avx2", "x86-64-vnni": "Vnni", "aarch64": "Arm64Dot"}
    assert block_instructions(Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu"})) is None
