"""Log-probabilities of a token, from logits that are summed in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.engine.logprobs import LANES, log_sum_exp, token_logprobs


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([1, 7, LANES, LANES + 1, 1000, 151_936]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    shift=st.sampled_from([-80.0, 0.0, 500.0]),
    seed=st.integers(0, 99),
)
def test_log_sum_exp_is_that_of_float64(size: int, spread: float, shift: float, seed: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * spread + shift).astype(np.float32)
    logits[1 : 1 + size // 3] = -np.inf  # as a grammar forbids them
    kept = logits.copy()
    largest = float(logits.max())
    exact = largest + math.log(np.exp(logits.astype(np.float64) - largest).sum())
    assert abs(log_sum_exp(logits) - exact) < 2e-7 * max(1.0, abs(exact))
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("top", [0, 1, 5, 20, 1000, 2000])
def test_the_likeliest_tokens_are_told_best_first_and_of_equals_the_first(top: int) -> None:
    """Never more than there are."""
    logits = np.round(np.random.default_rng(3).standard_normal(1000) * 4).astype(np.float32)
    told = token_logprobs(logits, 7, top)
    shares = logits.astype(np.float64) - math.log(np.exp(logits.astype(np.float64)).sum())
    assert [token for token, _ in told.top] == np.argsort(-logits, kind="stable")[:top].tolist()
    np.testing.assert_allclose([share for _, share in told.top], shares[[token for token, _ in told.top]], rtol=1e-6)
    assert told.logprob == pytest.approx(shares[7], rel=1e-6)
