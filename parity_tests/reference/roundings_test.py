"""Roundings in PyTorch against the operators that make them."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from parity_tests.reference.roundings import Int8Groups, uint8_call

COLUMNS, ROWS = 200, 24


def test_uint8_rounding_by_hand():
    x = torch.tensor([-1.0, 0.0, 0.004, 1.55])
    step = 2.55 / 255
    assert torch.allclose(uint8_call(x), torch.tensor([-100.0, 0.0, 0.0, 155.0]) * step)
    assert torch.equal(uint8_call(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("tokens", [1, 7])
def test_int8_groups_are_what_onnx_runtime_makes_of_an_input(block: int, tokens: int):
    drawn = np.random.default_rng(block + tokens)
    blocks = -(-COLUMNS // block)
    packed = drawn.integers(0, 256, (ROWS, blocks, block // 2), dtype=np.uint8)
    scales = drawn.uniform(0.01, 0.02, (ROWS, blocks)).astype(np.float32)
    x = drawn.standard_normal((tokens, COLUMNS)).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", K=COLUMNS, N=ROWS, bits=4,
        block_size=block, accuracy_level=4,
    )  # fmt: skip
    kinds = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [tokens, size])
        for name, size in (("x", COLUMNS), ("y", ROWS))
    ]
    parameters = [numpy_helper.from_array(packed, "codes"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph([node], "layer", kinds[:1], kinds[1:], parameters)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (said,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(ROWS, blocks, block).astype(np.float32) - 8
    matrix = (codes * scales[..., None]).reshape(ROWS, -1)[:, :COLUMNS].T
    rounded = Int8Groups(block)(torch.from_numpy(x)).numpy()
    largest = np.abs(said).max()
    assert np.abs(said - rounded @ matrix).max() < 2e-6 * largest
    assert np.abs(said - x @ matrix).max() > 1e-3 * largest, "nothing was rounded"
