from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.sampler import (
    RANDOM_SEED,
    Sampler,
    Sampling,
    filtered,
    keep_top_k,
    keep_top_p,
    likely,
    penalise,
    softmax,
)

scores_strategy = st.lists(st.integers(-40, 40), min_size=2, max_size=30).map(lambda row: np.array(row, np.float64) / 4)


@settings(max_examples=60, deadline=None)
@given(scores_strategy, st.integers(1, 35))
def test_top_k_keeps_scores_that_fewer_than_k_beat(scores: np.ndarray, count: int) -> None:
    expected = [score if sum(other > score for other in scores) < count else -np.inf for score in scores]
    np.testing.assert_array_equal(keep_top_k(scores, count), expected)


@settings(max_examples=60, deadline=None)
@given(scores_strategy, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_sufficient_set(scores: np.ndarray, share: float) -> None:
    probabilities = np.exp(scores) / np.exp(scores).sum()
    kept = np.isfinite(keep_top_p(scores, share))
    total = probabilities[kept].sum()
    assert kept.any() and total >= share - 1e-9
    if kept.sum() > 1:
        assert total - probabilities[kept].min() < share + 1e-9
    if not kept.all():
        assert probabilities[kept].min() >= probabilities[~kept].max()


@settings(max_examples=60, deadline=None)
@given(scores_strategy, st.lists(st.integers(0, 1), max_size=6), st.sampled_from([0.5, 1.0, 1.2, 2.0]))
def test_penalty_counts_a_repeated_token_once(scores: np.ndarray, tokens: list[int], penalty: float) -> None:
    expected = scores.copy()
    for token in set(tokens):
        expected[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    np.testing.assert_allclose(penalise(scores, tokens, penalty), expected)


def test_filters_agree_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    draw = np.random.default_rng(3)
    for case in range(20):
        scores = draw.normal(size=50) * 3
        ids = draw.integers(0, 50, 8)
        sampling = Sampling(0.7, int(draw.integers(1, 50)), float(draw.uniform(0.2, 0.99)), 1.3)
        theirs = torch.from_numpy(scores)[None]
        theirs = process.RepetitionPenaltyLogitsProcessor(1.3)(torch.from_numpy(ids)[None], theirs)
        theirs = process.TemperatureLogitsWarper(0.7)(None, theirs)
        theirs = process.TopKLogitsWarper(sampling.top_k)(None, theirs)
        theirs = process.TopPLogitsWarper(sampling.top_p)(None, theirs)
        ours = filtered(penalise(scores, ids.tolist(), 1.3), sampling)
        np.testing.assert_allclose(softmax(ours), torch.softmax(theirs, -1)[0].numpy(), atol=1e-12, err_msg=str(case))


def test_greedy_takes_the_largest_after_the_penalty() -> None:
    logits = np.array([1.0, 3.0, 2.9])
    assert Sampler(Sampling()).choose(logits, [1]) == 1
    assert Sampler(Sampling(repetition_penalty=1.2)).choose(logits, [1]) == 2


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2, 1e-9]))
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    drawn = [sampler.choose(logits, []) for _ in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4)[:3] / 4000, [0.5, 0.3, 0.2], atol=0.03)
    again = Sampler(Sampling(temperature=1.0, seed=5))
    assert [again.choose(logits, []) for _ in range(50)] == drawn[:50]
    other = Sampler(Sampling(temperature=1.0, seed=6))
    assert [other.choose(logits, []) for _ in range(50)] != drawn[:50]


def test_low_temperature_sharpens() -> None:
    logits = np.array([1.0, 0.0])
    cold = Sampler(Sampling(temperature=0.05, seed=0))
    assert {cold.choose(logits, []) for _ in range(200)} == {0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("shift", [-90.0, 0.0, 90.0])
def test_temperatures_near_0_take_the_largest(temperature: float, shift: float) -> None:
    logits = np.random.default_rng(2).normal(shift, 3, 600).astype(np.float32)
    for top_k, top_p in ((0, 1.0), (0, 0.9), (40, 0.5)):
        sampler = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=1))
        assert sampler.choose(logits, []) == logits.argmax()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(PackageError, match="not finite"):
        Sampler(Sampling()).choose(np.array([0.0, value]), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1.0, np.inf, np.nan)),
        ("top_k", -1),
        *(("top_p", value) for value in (0.0, 1.1, np.nan)),
        *(("repetition_penalty", value) for value in (0.0, np.inf, np.nan)),
        ("seed", -2),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match="out of range") as refused:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert str(value) in refused.value.expected


def test_the_seed_that_stands_for_none_draws_afresh() -> None:
    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(np.zeros(9), []) for _ in range(40)]

    assert drawn(0) == drawn(0) and drawn(RANDOM_SEED) != drawn(RANDOM_SEED) and drawn(None) != drawn(None)


whole_scores = st.lists(st.integers(-6, 6), min_size=2, max_size=700).map(lambda row: np.array(row, np.float32) / 2)


@settings(max_examples=60, deadline=None)
@given(whole_scores, st.lists(st.integers(0, 699), max_size=9), st.sampled_from([0.5, 1.0, 1.2]))
def test_the_best_token_is_that_of_all_scores_penalised(logits: np.ndarray, answer: list[int], penalty: float) -> None:
    answer = [token % logits.size for token in answer]
    wanted = penalise(logits.astype(np.float64), answer, penalty).argmax()
    assert Sampler(Sampling(repetition_penalty=penalty)).choose(logits, answer) == wanted


@settings(max_examples=60, deadline=None)
@given(whole_scores, st.lists(st.integers(0, 699), max_size=9), st.integers(1, 4), st.sampled_from([0.3, 0.9, 1.0]))
def test_a_draw_from_the_likely_tokens_is_that_from_all(
    logits: np.ndarray, answer: list[int], count: int, share: float
) -> None:
    answer = [token % logits.size for token in answer]
    sampling = Sampling(0.7, count, share, 1.2, seed=count)
    chances = softmax(filtered(penalise(logits.astype(np.float64), answer, 1.2), sampling))
    drawn = np.random.default_rng(count).random()
    left = np.flatnonzero(chances)
    edges = np.cumsum(chances[left])
    wanted = left[min(np.searchsorted(edges, drawn * edges[-1], side="right"), left.size - 1)]
    assert Sampler(sampling).choose(logits, answer) == wanted


def test_few_of_a_large_vocabulary_are_looked_at_for_top_k() -> None:
    logits = np.random.default_rng(4).normal(size=100_000).astype(np.float32)
    near = likely(logits, np.array([5, 7]), 40)
    assert near is not None and len(near) < 200 and {5, 7} < set(near.tolist())
    assert likely(logits, np.array([5, 7]), 0) is None, "0 takes them all"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.999))
def test_top_p_of_a_large_vocabulary_sorts_what_it_needs(seed: int, share: float) -> None:
    scores = np.round(np.random.default_rng(seed).normal(size=3000) * 4) / 2
    order = np.argsort(-scores, kind="stable")
    count = int(np.searchsorted(np.cumsum(softmax(scores)[order]), share)) + 1
    assert set(np.flatnonzero(keep_top_p(scores, share) > -np.inf)) == set(order[:count])
