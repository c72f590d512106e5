"""Rows that are turned before they are rounded: the turn is Hadamard's, undoes itself, and leaves equal bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.quantisation.grid_blockwise import ScaleRule
from export.quantisation.grid_rotated import RotatedGrid
from export.quantisation.grids import GRIDS
from export.quantisation.hadamard import block_of, matrix, turned

GRID = RotatedGrid("turned", 8, 0, ScaleRule.POSITIVE, wide_scales=True)


@pytest.mark.parametrize(("columns", "block"), [(5760, 64), (576, 64), (48, 16), (12, 4), (13, 1)])
def test_blocks_are_turned_by_a_symmetric_orthogonal_matrix(columns: int, block: int) -> None:
    assert block_of(columns) == block
    rotation = np.array(matrix(block)).reshape(block, block)
    np.testing.assert_array_equal(rotation, rotation.T)
    np.testing.assert_array_equal(rotation @ rotation, np.eye(block))
    rows = torch.randn(700, columns, generator=torch.Generator().manual_seed(1))
    by_matrix = (rows.double().numpy().reshape(-1, block) @ rotation).reshape(700, columns)
    np.testing.assert_allclose(turned(rows).numpy(), by_matrix, atol=1e-5)
    np.testing.assert_allclose(turned(turned(rows)).numpy(), rows.numpy(), atol=1e-5)


def test_a_row_s_bits_do_not_depend_on_those_beside_it() -> None:
    rows = torch.randn(700, 576, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = GRID.quantise(rows)
    for start, stop in ((0, 1), (3, 250), (699, 700)):
        part = GRID.quantise(rows[start:stop])
        assert torch.equal(part.codes, whole.codes[start:stop]) and torch.equal(part.scales, whole.scales[start:stop])


def test_two_neighbours_fit_the_sixteen_bits_of_a_processor_without_vnni() -> None:
    """Also where a row's largest values lie side by side, and where the scale is stretched for them."""
    rows = torch.randn(64, 576, generator=torch.Generator().manual_seed(4))
    alike = turned(rows)
    alike[:, 10:12] = 5.0
    alike[:, 301] = -alike[:, 300]
    for given in (rows, turned(alike), rows[:, :13]):
        codes = GRID.quantise(given).codes.int() - GRID.zero
        even = codes.shape[1] // 2 * 2
        sums = codes[:, 0:even:2] + codes[:, 1:even:2]
        assert int((sums.abs() * 2 * GRID.steps).max()) <= 32767
        assert int(codes.abs().max()) > 60


def test_one_large_value_costs_the_others_less_than_without_the_turn() -> None:
    rows = torch.randn(8, 576, generator=torch.Generator().manual_seed(3))
    rows[:, 100] = 60
    others = torch.arange(576) != 100

    def error(grid: RotatedGrid) -> float:
        return float((grid.dequantise(grid.quantise(rows)) - rows)[:, others].square().mean().sqrt())

    plain = GRIDS["ort_int8_row"]
    assert 0 < error(GRID) < 0.3 * error(plain)  # type: ignore[arg-type]
