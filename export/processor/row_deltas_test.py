"""Deltas that some rows have, and the logits of a gate."""

from __future__ import annotations

import numpy as np
import pytest

from export.processor.conftest import X86, drawn, of_processor
from export.processor.row_deltas import gate_logits, row_deltas
from export.processor.row_kernels import SHARED

pytestmark = pytest.mark.parametrize("place", X86)
WIDTHS = (5, 64, 70)
"""Less than a vector, whole vectors, and some numbers behind them."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 5, "many"])
def test_each_row_gets_its_own_delta_or_none(place: str, count: int | str, width: int) -> None:
    many = SHARED // width + 1 if isinstance(count, str) else count
    rows, deltas = drawn(1, many, width), drawn(2, 3, width)
    index = np.random.default_rng(3).integers(-1, 5, many)
    index[-1] = 2
    expected = rows.copy()
    for row in np.flatnonzero((index >= 0) & (index < 3)):
        expected[row] += deltas[index[row]]
    of_processor(place, row_deltas, width)(deltas, index, rows)
    np.testing.assert_array_equal(rows, expected)


def test_rows_without_a_delta_stay_as_they_are(place: str) -> None:
    # three deltas of which none is taken, whatever the index, and none at all
    for deltas, index in ((3, [3, -1, 1 << 40, -(1 << 40)]), (0, [0, 1, -1, 7])):
        rows = drawn(1, 4, 70)
        rows[0, :2] = [np.nan, -0.0]
        before = rows.copy()
        # an array of no rows has the steps of one
        of_processor(place, row_deltas, 70)(drawn(2, deltas + 1, 70)[:deltas], np.array(index), rows)
        np.testing.assert_array_equal(rows.view(np.int32), before.view(np.int32))


@pytest.mark.parametrize("hidden", [5, 128, 130])
@pytest.mark.parametrize("experts", [1, 4])
def test_logits_are_those_of_a_product_and_a_bias(place: str, hidden: int, experts: int) -> None:
    kernel, weight, bias = of_processor(place, gate_logits, hidden, experts), drawn(2, experts, hidden), drawn(3, experts)
    x = drawn(1, SHARED // hidden + 1, hidden)
    out, alone = np.ones((len(x), experts), np.float32), np.ones((1, experts), np.float32)
    kernel(x, weight, bias, out)
    np.testing.assert_allclose(out, x.astype(np.float64) @ weight.T + bias, rtol=1e-6, atol=1e-5)
    # few rows are taken one by one: the same bits
    for row in (0, len(x) - 1):
        kernel(x[row : row + 1], weight, bias, alone)
        np.testing.assert_array_equal(alone[0], out[row])
