"""A layer of 8-bit inputs whose copy rounds nothing is the layer of its stored matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.backends.onnx.int8_linear import Int8TokenLinear
from export.backends.onnx.record import ROTATED_GRID, TOKEN_GRID
from export.backends.onnx.rotated_linear import RotatedRowLinear
from export.quantisation.grids import GRIDS
from parity_tests.localize.exact_products import set_float_products


@pytest.mark.parametrize(
    ("layer", "products", "least"),
    [
        (Int8TokenLinear(48, 40, True, 64), 1, 1e-3),
        (Int8TokenLinear(48, 40, True, 16), 1, 1e-3),
        (Int8TokenLinear(48, 40, True, 64, True), 2, 1e-5),
        (Int8TokenLinear(48, 40, True, 16, True), 2, 1e-5),
        (RotatedRowLinear(48, 40, True), 1, 1e-3),
    ],
)
def test_a_copy_rounds_no_input(
    tmp_path: Path, layer: Int8TokenLinear | RotatedRowLinear, products: int, least: float
) -> None:
    grid = GRIDS[ROTATED_GRID if isinstance(layer, RotatedRowLinear) else TOKEN_GRID]
    drawn = torch.Generator().manual_seed(1)
    codes = grid.quantise(torch.randn(40, 48, generator=drawn))
    layer.weight_codes.data = (codes.codes.to(torch.int16) - 128).to(torch.int8)
    layer.weight_scales.data = codes.scales[:, 0]
    assert layer.bias is not None
    layer.bias.data = torch.randn(40, generator=drawn)
    tokens = torch.randn(2, 7, 48, generator=drawn)
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer.eval(), (tokens,), str(path), dynamo=True, opset_version=23, optimize=False, verbose=False)
    model = onnx.load(str(path))
    expected = (tokens @ grid.dequantise(codes).T + layer.bias).detach().numpy()

    def distance() -> float:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (output,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        return float(np.abs(output - expected).max() / np.abs(expected).max())

    assert distance() > least
    assert set_float_products(model) == products
    assert distance() < 1e-6
    assert set_float_products(model) == 0
