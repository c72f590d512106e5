"""Both bicubic kernels against torch in float64, growing and shrinking, on grids that are not square."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_py.preprocess.resample import antialiased_bicubic, plain_bicubic, resample_table

SIDES = [
    (3, 7, 5),
    (4, 6, 6),
    (6, 4, 5),
    (9, 4, 4),
    (16, 5, 11),
    (16, 3, 3),
    (24, 7, 30),
    (2, 9, 1),
    (7, 1, 1),
    (32, 32, 31),
]
"""Side of the stored table, then rows and columns at run time."""


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("side", "rows", "columns"), SIDES)
def test_tables_are_resampled_as_torch_does(side: int, rows: int, columns: int, antialias: bool):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng([side, rows]).normal(size=(side * side, 5)).astype(np.float32)
    kernel = antialiased_bicubic if antialias else plain_bicubic
    ours = resample_table(table, kernel(side, rows), kernel(side, columns))
    grid = torch.from_numpy(table).double().reshape(1, side, side, 5).permute(0, 3, 1, 2)
    options = {"size": (rows, columns), "mode": "bicubic", "align_corners": False, "antialias": antialias}
    theirs = torch.nn.functional.interpolate(grid, **options).permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
