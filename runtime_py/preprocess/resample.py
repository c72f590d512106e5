"""The two bicubic kernels that position tables are resampled with, as (out, in) matrices, and sine tables.

`antialiased_bicubic` is torch's ``interpolate(mode="bicubic", antialias=True)`` along one axis: a = -0.5, weights
renormalised at the borders, support widened when shrinking. `plain_bicubic` is the same call without antialias:
a = -0.75, borders clamped. The difference reaches 0.3 on unit-variance tables (see docs/families/minicpm-v.md).
"""

from __future__ import annotations

import numpy as np


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def antialiased_bicubic(size_in: int, size_out: int) -> np.ndarray:
    """float64 (size_out, size_in) matrix of the antialiased bicubic resampling, half-pixel centres."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(size_out) + 0.5)
    low = np.maximum(np.floor(centres - 2 * stretch + 0.5), 0)
    high = np.minimum(np.floor(centres + 2 * stretch + 0.5), size_in)
    index = np.arange(size_in)
    # torch takes -0.5 with antialias, as Pillow does, and -0.75 without
    weights = _cubic((index[None, :] + 0.5 - centres[:, None]) / stretch, -0.5)
    weights = np.where((index[None, :] >= low[:, None]) & (index[None, :] < high[:, None]), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def plain_bicubic(size_in: int, size_out: int) -> np.ndarray:
    """float64 (size_out, size_in) matrix of the plain bicubic resampling, half-pixel centres, clamped borders."""
    centres = size_in / size_out * (np.arange(size_out) + 0.5) - 0.5
    base = np.floor(centres).astype(np.int64)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        column = np.clip(base + tap, 0, size_in - 1)
        np.add.at(matrix, (np.arange(size_out), column), _cubic(centres - (base + tap), -0.75))
    return matrix


def resample_table(table: np.ndarray, row_matrix: np.ndarray, column_matrix: np.ndarray) -> np.ndarray:
    """Resample a (side * side, width) table to (rows * columns, width) in float64, row-major."""
    side = row_matrix.shape[1]
    grid = table.astype(np.float64).reshape(side, side, -1)
    out = np.einsum("ri,cj,ijw->rcw", row_matrix, column_matrix, grid, optimize=True)
    return out.reshape(-1, grid.shape[-1])


def sine_table(rows: int, columns: int, width: int) -> np.ndarray:
    """Fresh 2-D sine/cosine positions, float32 (rows * columns, width).

    The first half of the channels encodes the column, the second the row; inside a half width/4 sines come before
    width/4 cosines with frequency 10000 ** (-k / (width / 4)).
    """
    quarter = width // 4
    frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))

    def axis(size: int) -> np.ndarray:
        angles = np.arange(size, dtype=np.float32)[:, None].astype(np.float64) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)

    column, row = axis(columns), axis(rows)
    grid = np.concatenate(
        [
            np.broadcast_to(column[None], (rows, columns, width // 2)),
            np.broadcast_to(row[:, None], (rows, columns, width // 2)),
        ],
        axis=2,
    )
    return grid.reshape(rows * columns, width)
