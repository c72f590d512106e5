"""The MLC grids against an independent NumPy float16 / float32 reading of the published rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.quantisation.grid_mlc import MlcGrid
from runtime_py.errors import CheckpointError


def published(weights: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales by the formulas, every operation done in ``dtype`` by NumPy."""
    rows, columns = weights.shape
    groups = -(-columns // 32)
    padded = np.zeros((rows, groups * 32), dtype)
    padded[:, :columns] = weights.astype(dtype)
    grouped = padded.reshape(rows, groups, 32)
    scale = (np.abs(grouped).max(axis=2) / dtype(7)).astype(dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = (grouped / scale[..., None]).astype(dtype) + dtype(7)
    codes = np.clip(np.rint(ratio), 0, 14)
    codes = np.where(np.isnan(codes), 0, codes).astype(np.uint8).reshape(rows, -1)
    codes[:, columns:] = 0
    return codes, scale


@pytest.mark.parametrize(("name", "dtype"), [("q4f16_1", np.float16), ("q4f32_1", np.float32)])
@pytest.mark.parametrize("columns", [32, 80, 96, 24])
def test_codes_follow_the_published_rule(name, dtype, columns):
    rng = np.random.default_rng(columns)
    weights = rng.standard_normal((64, columns)).astype(np.float16).astype(np.float32)
    weights[0] = 0
    weights[1] = np.arange(columns) - columns / 2
    weights[2] = (np.arange(columns) % 15 - 7) + 0.5
    weights[3] = 0.001
    weights[3, 0] = 60000
    codes = MlcGrid(name, np.dtype(dtype).name).quantise(torch.from_numpy(weights))
    expected, scales = published(weights, dtype)
    assert np.array_equal(codes.codes.numpy(), expected)
    if name == "q4f16_1":
        assert np.array_equal(codes.scales.numpy(), scales)
    else:
        assert np.array_equal(codes.scales.numpy(), torch.from_numpy(scales).to(torch.bfloat16).float().numpy())


def test_dequantised_values_are_within_half_a_step():
    grid = MlcGrid("q4f16_1", "float16")
    weights = torch.randn(16, 64)
    codes = grid.quantise(weights)
    step = codes.scales.float().repeat_interleave(32, dim=1)
    assert bool(((grid.dequantise(codes) - weights).abs() <= 0.51 * step + 2e-3).all())


def test_code_15_never_appears_and_zeros_stay_zero():
    grid = MlcGrid("q4f32_1", "float32")
    weights = torch.randn(8, 96) * torch.logspace(-4, 4, 8)[:, None]
    weights[:, 32:64] = 0
    codes = grid.quantise(weights)
    assert int(codes.codes.max()) == 14
    assert not bool(codes.codes[:, 32:64].any())
    assert not bool(grid.dequantise(codes)[:, 32:64].any())


def test_weight_beyond_float16_is_refused():
    with pytest.raises(CheckpointError, match="not finite in float16"):
        MlcGrid("q4f16_1", "float16").quantise(torch.full((1, 32), 1e6))
