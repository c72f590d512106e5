"""Every metric against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity_tests.judging import metrics
from parity_tests.judging.metrics import Kind
from parity_tests.judging.presets import PRESETS


def test_distances_by_hand():
    reference = np.array([[1.0, -2.0], [4.0, 0.0]])
    candidate = np.array([[1.5, -2.0], [1.0, 0.5]])
    assert metrics.max_abs(reference, candidate) == 3.0
    assert metrics.mean_abs(reference, candidate) == 1.0
    assert metrics.relative_max(reference, candidate) == 0.75


def test_cosine_by_hand():
    assert metrics.cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(1 / math.sqrt(2))
    assert metrics.cosine(np.array([1.0, 2.0]), np.array([-1.0, -2.0])) == pytest.approx(-1.0)
    assert metrics.cosine(np.zeros(3), np.zeros(3)) == 1.0
    assert metrics.cosine(np.ones(3), np.zeros(3)) == 0.0


def test_worst_row_shows_what_the_whole_hides():
    reference = np.ones((100, 8))
    candidate = reference.copy()
    candidate[3] = -1
    assert metrics.cosine(reference, candidate) == pytest.approx(0.98)
    assert metrics.row_cosines(reference, candidate).min() == pytest.approx(-1.0)


def test_kl_by_hand():
    reference, candidate = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert metrics.kl_divergence(reference, candidate)[0] == pytest.approx(expected)
    assert metrics.kl_divergence(reference + 7, reference)[0] == pytest.approx(0, abs=1e-12)


def test_kl_of_large_logits_is_that_of_small_ones():
    reference, candidate = np.array([[0.0, 1.0, 2.0]]), np.array([[2.0, 0.0, 1.0]])
    beside = np.array([[-2000.0, 0.0, 0.0, 0.0]])
    wide = [np.concatenate([[[0.0]], row], axis=1) + beside + 900 for row in (reference, candidate)]
    assert metrics.kl_divergence(*wide)[0] == pytest.approx(metrics.kl_divergence(reference, candidate)[0])


def test_top1_and_the_margin_of_flips():
    reference = np.array([[3.0, 1.0, 0.0], [2.0, 1.9, 0.0], [0.0, 0.0, 5.0]])
    candidate = np.array([[3.0, 1.0, 0.0], [1.9, 2.0, 0.0], [0.0, 0.0, 5.0]])
    assert metrics.top1_agreement(reference, candidate) == pytest.approx(2 / 3)
    assert metrics.flipped_margin(reference, candidate) == pytest.approx(0.1)
    assert metrics.flipped_margin(reference, reference) == 0.0


def test_prefix_and_the_margin_where_answers_part():
    assert metrics.equal_prefix(np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4])) == 2
    assert metrics.equal_prefix(np.array([1, 2]), np.array([1, 2])) == 2
    steps = np.array([[9.0, 0.0], [1.0, 1.25]])
    assert metrics.split_margin(np.array([0, 1]), np.array([0, 0]), steps) == pytest.approx(0.25)
    assert metrics.split_margin(np.array([0, 1]), np.array([0, 1]), steps) == 0.0
    assert metrics.split_margin(np.array([0, 1]), np.array([0]), steps) == math.inf


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(broken: float):
    reference = np.array([[1.0, 2.0, 3.0]])
    candidate = np.array([[1.0, broken, 3.0]])
    figures = metrics.measure(Kind.LOGITS, reference, candidate)
    assert figures["max_abs"] == math.inf
    assert figures["relative_max"] == math.inf
    assert figures["worst_row_cosine"] == 0.0
    assert figures["kl_max"] == math.inf
    figures = metrics.measure(Kind.LOGITS, candidate, reference)
    assert figures["max_abs"] == figures["relative_max"] == figures["kl_max"] == math.inf
    assert figures["worst_row_cosine"] == 0.0


@pytest.mark.parametrize("beside", [np.inf, np.nan, 0.0])
def test_a_distance_over_nothing_or_infinity_is_infinite_and_none_is_none(beside: float):
    reference = np.array([beside, 0.0])
    assert metrics.relative_to(0.5, reference) == math.inf
    assert metrics.relative_to(0.0, reference) == 0.0
    assert metrics.relative_max(reference, reference + np.array([0.0, 0.5])) == math.inf


def test_measure_gives_what_each_kind_needs():
    ids = np.array([[5, 6, 7, 8]])
    tokens = metrics.measure(Kind.TOKENS, ids, np.array([[5, 6, 0, 8]]))
    assert tokens["mismatches"] == 1
    assert tokens["agreement"] == 0.75
    assert tokens["equal_prefix"] == 2
    assert tokens["max_abs"] == 7
    logits = metrics.measure(Kind.LOGITS, np.array([[[4.0, 0.0]]]), np.array([[[0.0, 1.0]]]))
    assert logits["flipped_relative"] == 2.0, "centred, the reference reaches from 2 to -2"
    assert logits["relative_max"] == pytest.approx(2.5 / 2)
    assert set(logits) <= set(metrics.HIGHER_IS_BETTER)
    assert set(tokens) <= set(metrics.HIGHER_IS_BETTER)


def test_an_equal_array_is_at_the_good_end_of_every_figure():
    rng = np.random.default_rng(0)
    measured = set()
    for kind in Kind:
        whole = kind in (Kind.TOKENS, Kind.EXACT)
        reference = rng.integers(0, 9, (1, 40)) if whole else rng.normal(size=(1, 40, 12))
        candidate = (reference + 5) % 9 if whole else rng.normal(size=(1, 40, 12))
        equal, other = (metrics.measure(kind, reference, array) for array in (reference, candidate))
        for name in equal:
            assert equal[name] > other[name] if metrics.HIGHER_IS_BETTER[name] else equal[name] < other[name], name
        measured |= set(equal)
    rest = set(metrics.HIGHER_IS_BETTER) - measured
    assert (
        rest == {"split_margin", "split_relative", "moved_ratio"} | {limit.metric for limit in PRESETS["strict"]} - measured
    )
    assert not any(metrics.HIGHER_IS_BETTER[name] for name in rest), "distances and counts of what is lost"


def test_half_of_the_positions_do_not_move_the_median_and_one_in_a_hundred_moves_the_99th_percentile():
    reference = np.zeros((1, 200, 2))
    candidate = reference.copy()
    candidate[0, :100] = 5, -5
    figures = metrics.measure(Kind.LOGITS, reference, candidate)
    assert figures["kl_median"] == 0 and figures["kl_p99"] == figures["kl_max"]
    candidate[0, 100] = 5, -5
    assert metrics.measure(Kind.LOGITS, reference, candidate)["kl_median"] == figures["kl_max"]
    candidate[0, 3:] = 0
    assert metrics.measure(Kind.LOGITS, reference, candidate)["kl_p99"] == figures["kl_max"], "three of 200"
    candidate[0, 2:] = 0
    assert metrics.measure(Kind.LOGITS, reference, candidate)["kl_p99"] == 0, "two of 200"


def test_what_all_tokens_of_a_row_have_in_common_is_no_difference_of_logits():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(1, 4, 50))
    candidate = reference + rng.normal(size=(1, 4, 1)) * 100
    figures = metrics.measure(Kind.LOGITS, reference, candidate)
    assert metrics.row_cosines(reference, candidate).min() < 0.5, "the raw cosine calls it nonsense"
    assert figures["worst_row_cosine"] == pytest.approx(1, abs=1e-12)
    assert figures["mean_row_cosine"] == pytest.approx(1, abs=1e-12)
    assert figures["relative_max"] < 1e-12
    assert figures["kl_max"] < 1e-12
    assert figures["max_abs"] > 10, "goldens speak of the values themselves"
    assert metrics.measure(Kind.FEATURES, reference, candidate)["worst_row_cosine"] < 0.5


def test_quantiles_and_means_stand_beside_the_worst():
    reference = np.zeros((1, 200, 2))
    candidate = reference.copy()
    candidate[0, 7] = 5, -5
    figures = metrics.measure(Kind.LOGITS, reference, candidate)
    assert figures["kl_max"] == pytest.approx(math.log(math.cosh(5)))
    assert figures["kl_mean"] == pytest.approx(figures["kl_max"] / 200)
    assert figures["kl_median"] == figures["kl_p99"] == 0


def test_one_row_that_is_far_off_leaves_the_medians_where_they_are():
    drawn = np.random.default_rng(3)
    reference = drawn.normal(size=(1, 41, 16))
    candidate = reference + 1e-5 * drawn.normal(size=reference.shape)
    before = metrics.measure(Kind.PICTURE_LOGITS, reference, candidate)
    candidate[0, 7] = -reference[0, 7]
    after = metrics.measure(Kind.PICTURE_LOGITS, reference, candidate)
    assert after["relative_max"] > 0.1
    assert after["relative_median"] < 1e-4
    assert after["worst_row_cosine"] == pytest.approx(-1)
    assert after["relative_median"] == pytest.approx(before["relative_median"], rel=0.2)
    assert 1 - after["median_row_cosine"] == pytest.approx(1 - before["median_row_cosine"], rel=0.2)
    candidate[0, 3:25] = -reference[0, 3:25]
    most = metrics.measure(Kind.PICTURE_LOGITS, reference, candidate)
    assert most["relative_median"] > 0.1 and most["median_row_cosine"] < 0, "most rows are far off"


def test_a_small_row_beside_a_large_one_shows_in_row_errors():
    reference = np.ones((3, 4))
    reference[0] = 20_000
    candidate = reference.copy()
    candidate[1, 2] = 1.5
    assert metrics.relative_max(reference, candidate) < 1e-4
    assert metrics.row_errors(reference, candidate) == pytest.approx([0, 0.25, 0])
    candidate[2, :2] = 1.5
    assert metrics.row_errors(reference, candidate)[2] == pytest.approx(math.sqrt(2) / 4)
    assert metrics.row_errors(np.zeros((1, 2)), np.zeros((1, 2))) == [0]
    candidate[2, 0] = np.nan
    assert metrics.row_errors(reference, candidate)[2] == math.inf


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.measure(Kind.FEATURES, np.zeros((2, 3)), np.zeros((3, 2)))
