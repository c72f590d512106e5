"""Slicing against a statement of the rule in exact fractions and plain search."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from runtime_py.preprocess.slices import SliceRule, cut, plan

RULE = SliceRule(448, 14, 9)


def _half_even(value: Fraction) -> int:
    low = math.floor(value)
    rest = value - low
    return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def _fit(width: Fraction, height: Fraction, side: int, patch: int, upscale: bool) -> tuple[int, int]:
    if upscale or width * height > side * side:
        # h = floor(side / sqrt(w / h)) is the largest integer with h * h * w <= side * side * height
        tall = math.isqrt(int(side * side * height / width))
        width, height = Fraction(math.floor(float(tall) * (float(width) / float(height)))), Fraction(tall)
    return tuple(max(_half_even(length / patch) * patch, patch) for length in (width, height))  # type: ignore[return-value]


def _nearest_grid(width: int, height: int, count: int, limit: int) -> set[tuple[int, int]]:
    """All grids whose ratio is nearest in the logarithm: the ratio of ratios nearest to one."""
    grids = [
        (columns, rows)
        for total in (count - 1, count, count + 1)
        if total != 1 and total <= limit
        for columns in range(1, total + 1)
        for rows in range(1, total + 1)
        if columns * rows == total
    ]

    def off(grid: tuple[int, int]) -> Fraction:
        ratio = Fraction(width * grid[1], height * grid[0])
        return max(ratio, 1 / ratio)

    least = min(off(grid) for grid in grids)
    return {grid for grid in grids if off(grid) == least}


def test_200_random_sizes() -> None:
    draw = np.random.default_rng(11)
    sizes = np.exp(draw.uniform(np.log(60), np.log(4000), (200, 2))).astype(int).tolist()
    sliced = 0
    for width, height in sizes:
        slices = plan(width, height, RULE)
        count = min(-(-width * height // 448**2), 9)
        if count <= 1:
            assert slices.grid == (0, 0)
            assert slices.overview == _fit(Fraction(width), Fraction(height), 448, 14, True), (width, height)
            continue
        sliced += 1
        assert slices.grid in _nearest_grid(width, height, count, 9), (width, height)
        assert slices.overview == _fit(Fraction(width), Fraction(height), 448, 14, False), (width, height)
        columns, rows = slices.grid
        wide = max(_half_even(Fraction(width, columns)) * columns, columns)
        tall = max(_half_even(Fraction(height, rows)) * rows, rows)
        assert slices.cell == _fit(Fraction(wide, columns), Fraction(tall, rows), 448, 14, True), (width, height)
    assert 50 < sliced < 150


@pytest.mark.parametrize(
    ("size", "grid"), [((448, 448), (0, 0)), ((4000, 448), (9, 1)), ((448, 4000), (1, 9)), ((900, 880), (2, 2))]
)
def test_pictures_of_known_sizes_get_their_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert plan(*size, RULE).grid == grid


def test_pieces_cover_the_sheet_row_by_row() -> None:
    columns = np.broadcast_to(np.arange(0, 250, dtype=np.uint8)[None, :, None], (125, 250, 3))
    pieces, grid = cut(np.ascontiguousarray(columns), SliceRule(70, 14, 6))
    assert grid[0] * grid[1] == len(pieces) - 1 and grid[0] > grid[1]
    means = np.array([piece.mean() for piece in pieces[1:]]).reshape(grid[1], grid[0])
    assert (np.diff(means, axis=1) > 10).all()
    np.testing.assert_allclose(means, np.broadcast_to(means[:1], means.shape), atol=1.0)
    assert all(side % 14 == 0 for piece in pieces for side in piece.shape[:2])


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (3, 5000)])
def test_absurd_aspects_still_give_whole_patches(size: tuple[int, int]) -> None:
    pieces, (columns, rows) = cut(np.zeros((size[1], size[0], 3), np.uint8), RULE)
    assert len(pieces) == 1 + columns * rows
    assert all(side >= 14 and side % 14 == 0 for piece in pieces for side in piece.shape[:2])
