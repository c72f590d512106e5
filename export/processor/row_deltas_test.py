"""Deltas that some rows have, and the logits of a gate."""

from __future__ import annotations

import numpy as np
import pytest

from export.processor.conftest import X86, drawn, of_processor
from export.processor.row_deltas import gate_logits, row_deltas
from export.processor.row_kernels import SHARED

pytestmark = pytest.mark.parametrize("place", X86)


@pytest.mark.parametrize("count", [1, 5, SHARED // 70 + 1])
def test_each_row_gets_its_own_delta_or_none(place: str, count: int) -> None:
    rows, deltas = drawn(1, count, 70), drawn(2, 3, 70)
    index = np.random.default_rng(3).integers(0, 5, count)
    expected = rows + np.concatenate([deltas, np.zeros((2, 70), np.float32)])[index]
    of_processor(place, row_deltas, 70)(deltas, index, rows)
    np.testing.assert_array_equal(rows, expected)


def test_logits_are_those_of_a_product_and_a_bias(place: str) -> None:
    x, weight, bias, out = drawn(1, 1, 130), drawn(2, 4, 130), drawn(3, 4), np.ones((1, 4), np.float32)
    of_processor(place, gate_logits, 130, 4)(x, weight, bias, out)
    np.testing.assert_allclose(out, x.astype(np.float64) @ weight.T + bias, rtol=1e-6, atol=1e-5)
