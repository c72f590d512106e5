"""The grids against the kernels that read them: real ONNX Runtime nodes, element for element."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.quantisation.grid_blockwise import BlockGrid
from export.quantisation.grids import GRIDS, Grid
from export.quantisation.pack import pack_signed, pack_unsigned, unpack_unsigned
from runtime_py.errors import CheckpointError


def run_node(node: onnx.NodeProto, feeds: dict[str, np.ndarray], stored: list[TensorProto], output: int) -> np.ndarray:
    """Run one operator with output ``y`` on the processor."""
    fed = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()]
    graph = helper.make_graph([node], "g", fed, [helper.make_tensor_value_info("y", output, None)], stored)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def layout(grid: Grid) -> list[onnx.AttributeProto]:
    """The attributes that both blockwise operators share."""
    return [helper.make_attribute("bits", grid.bits), helper.make_attribute("block_size", grid.group)]


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Gaussian rows of different sizes, one of zeros, one with an outlier."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    made *= torch.logspace(-3, 2, rows)[:, None]
    made[1] = 0
    made[2, columns // 2] = 50
    return made


@pytest.mark.parametrize("columns", [64, 128, 60, 4304 // 8, 17])
@pytest.mark.parametrize("name", ["ort_int4_b32", "ort_int4_b64", "ort_int4_b128", "ort_int4_asym_b32", "ort_int8_b32"])
def test_dequantise_is_what_matmul_nbits_computes(name: str, columns: int) -> None:
    grid = GRIDS[name]
    codes = grid.quantise(weights(9, columns))
    blocks = -(-columns // grid.group)
    packed = pack_unsigned(codes.codes, grid.bits).view(9, blocks, -1).numpy()
    stored = [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(codes.scales.float().numpy(), "s")]
    if codes.zero_points is not None:
        stored.append(numpy_helper.from_array(pack_unsigned(codes.zero_points, grid.bits).numpy(), "z"))
    names = ["a", *(tensor.name for tensor in stored)]
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", K=columns, N=9, accuracy_level=0)
    node.attribute.extend(layout(grid))
    computed = run_node(node, {"a": np.eye(columns, dtype=np.float32)}, stored, TensorProto.FLOAT)
    np.testing.assert_array_equal(computed.T, grid.dequantise(codes)[:, :columns].numpy())


@pytest.mark.parametrize("name", ["ort_gather_int8_b32", "ort_gather_int4_b32"])
def test_dequantise_is_what_gather_block_quantized_computes(name: str) -> None:
    grid = GRIDS[name]
    codes = grid.quantise(weights(40, 96))
    stored = [
        numpy_helper.from_array(pack_unsigned(codes.codes, grid.bits).numpy(), "d"),
        numpy_helper.from_array(codes.scales.numpy(), "s"),
    ]
    node = helper.make_node(
        "GatherBlockQuantized", ["d", "i", "s"], ["y"], domain="com.microsoft", gather_axis=0, quantize_axis=1
    )
    node.attribute.extend(layout(grid))
    computed = run_node(node, {"i": np.arange(40)}, stored, TensorProto.FLOAT16)
    np.testing.assert_array_equal(computed.astype(np.float32), grid.dequantise(codes).numpy())


@pytest.mark.parametrize("name", ["trt_int4_b32", "trt_int4_b128"])
def test_dequantise_is_what_dequantize_linear_computes(name: str) -> None:
    grid = GRIDS[name]
    codes = grid.quantise(weights(8, 256))
    packed = pack_signed(codes.codes, 4).numpy().tobytes()
    stored = [
        helper.make_tensor("q", TensorProto.INT4, [8, 256], packed, raw=True),
        numpy_helper.from_array(codes.scales.numpy(), "s"),
    ]
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=1, block_size=grid.group)
    computed = run_node(node, {}, stored, TensorProto.FLOAT16)
    np.testing.assert_array_equal(computed.astype(np.float32), grid.dequantise(codes).numpy())
    assert bool((codes.scales >= 0).all())


def test_int8_rows_are_what_matmul_integer_reads() -> None:
    grid = GRIDS["ort_int8_row"]
    codes = grid.quantise(weights(9, 538))
    signed = pack_signed(codes.codes, 8).numpy().view(np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    stored = [numpy_helper.from_array(signed.T.copy(), "b")]
    computed = run_node(node, {"a": np.eye(538, dtype=np.uint8)}, stored, TensorProto.INT32).astype(np.float32)
    np.testing.assert_array_equal((computed * codes.scales[:, 0].numpy()).T, grid.dequantise(codes).numpy())


@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if type(grid) is BlockGrid])
def test_error_is_at_most_half_a_step(name: str) -> None:
    grid = GRIDS[name]
    assert isinstance(grid, BlockGrid)
    rows = weights(12, 300, seed=3)
    codes = grid.quantise(rows)
    group = codes.codes.shape[1] // codes.scales.shape[1]
    step = codes.scales.float().abs().repeat_interleave(group, dim=1)[:, :300]
    error = (grid.dequantise(codes)[:, :300] - rows).abs()
    slack = rows.abs() * 2**-9 if grid.half or grid.zero_points else rows.abs() * 2**-10
    # POSITIVE and SIGNED scales leave the value opposite to the extreme at most one step off, when it is as large
    assert bool((error <= step * (1.0 if not grid.zero_points else 0.51) + slack + 1e-7).all())
    inner = rows.abs() < step * (grid.zero - 1)
    assert bool((error[inner] <= step[inner] * 0.51 + slack[inner] + 1e-7).all())


@pytest.mark.parametrize("factor", [1.0, 0.6])
@pytest.mark.parametrize("name", ["ort_int4_b32", "trt_int4_b32", "ort_int4_asym_b32", "ort_int8_b32"])
def test_the_codes_of_a_block_span_the_share_of_its_range_that_is_asked_for(name: str, factor: float) -> None:
    grid = GRIDS[name]
    assert isinstance(grid, BlockGrid)
    blocks = weights(6, 64)[3:].view(3, 2, 32) + torch.tensor([0.0, 0.5, -3.0])[:, None, None]
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    largest, fitted = torch.maximum(high, -low), grid.fit(blocks, factor)
    ends = torch.stack([grid.read(torch.full_like(fitted.scales, code), fitted) for code in (0.0, float(grid.highest))])
    step = fitted.scales.abs()
    if grid.zero_points:
        for end, side in zip(ends.sort(0).values, (low, high), strict=True):
            assert bool(((end - factor * side).abs() <= 0.51 * step).all())
    else:
        assert bool(((ends.abs().amax(0) - factor * largest).abs() <= 0.51 * step).all())


def test_padding_reads_back_as_zero() -> None:
    for name in ("ort_int4_b32", "ort_int4_asym_b32", "ort_int8_b32"):
        codes = GRIDS[name].quantise(weights(5, 40))
        assert codes.codes.shape == (5, 64)
        assert not GRIDS[name].dequantise(codes)[:, 40:].any()


def test_rows_do_not_depend_on_the_chunk_they_come_in() -> None:
    rows = weights(64, 96)
    for grid in GRIDS.values():
        whole = grid.quantise(rows)
        parts = [grid.quantise(rows[start : start + 7]) for start in range(0, 64, 7)]
        assert torch.equal(whole.codes, torch.cat([part.codes for part in parts])), grid.name
        assert torch.equal(whole.scales, torch.cat([part.scales for part in parts])), grid.name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e7])
def test_weights_without_a_scale_are_refused(bad: float) -> None:
    rows = weights(4, 64)
    rows[3, 5] = bad
    with pytest.raises(CheckpointError, match="no finite scale"):
        GRIDS["ort_int4_b32"].quantise(rows)


def test_the_docstring_quotes_the_errors_of_the_grids() -> None:
    """The figures of the module's docstring."""
    rows = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0))

    def error(name: str) -> float:
        grid = GRIDS[name]
        return float((grid.dequantise(grid.quantise(rows)) - rows).pow(2).mean())

    signed = error("ort_int4_b32")
    errors = [error(name) / signed for name in ("trt_int4_b32", "ort_int4_asym_b32", "ort_int4_b128", "ort_int4_asym_b128")]
    assert errors == pytest.approx([1.22, 0.88, 1.44, 1.37], abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_packing_round_trips(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_unsigned(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack_unsigned(packed, bits, columns), codes)


def test_low_bits_come_first() -> None:
    assert pack_unsigned(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack_signed(torch.tensor([[8, 7, 0, 15]], dtype=torch.uint8), 4).tolist() == [[0xF0, 0x78]]
    with pytest.raises(ValueError, match="3 bits"):
        pack_unsigned(torch.zeros(1, 1, dtype=torch.uint8), 3)
