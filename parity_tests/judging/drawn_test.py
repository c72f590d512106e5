"""Drawn answers: the distribution they come from, common draws of two sides, and what a difference in them says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.drawn import SamplingMode, _edge, described, draw, drawn_margin, drawn_scores, sampling_of
from parity_tests.judging.probes import Question, Recording, record
from runtime_py.generation.sampler import Sampling, filtered, penalise, softmax
from runtime_py.generation.session import Limits

GENERATION = {"temperature": 0.7, "top_k": 100, "top_p": 0.8, "repetition_penalty": 1.05}


def test_the_engine_knows_temperature_and_top_p() -> None:
    assert sampling_of(SamplingMode.GREEDY, GENERATION) is None
    assert sampling_of(SamplingMode.ENGINE, GENERATION) == Sampling(0.7, 0, 0.8, 1.0)
    assert sampling_of(SamplingMode.MODEL, GENERATION) == Sampling(0.7, 100, 0.8, 1.05)
    cold = {**GENERATION, "temperature": 0.0}
    assert sampling_of(SamplingMode.ENGINE, cold) == Sampling()
    assert sampling_of(SamplingMode.MODEL, cold) == Sampling(repetition_penalty=1.05)
    assert [described(Sampling()), described(Sampling(0.7, 100, 0.8, 1.05))] == [
        "greedy",
        "temperature 0.7, top-k 100, top-p 0.8, repetition penalty 1.05",
    ]


def test_draws_follow_the_filtered_distribution() -> None:
    row, sampling = np.array([2.0, 1.0, 0.5, -1.0, -3.0]), Sampling(0.8, 4, 0.95)
    count = 4000
    drawn = np.bincount([draw(row, sampling, step) for step in range(count)], minlength=5) / count
    assert np.abs(drawn - softmax(filtered(row, sampling))).max() < 0.03
    assert drawn[4] == 0


SETTINGS = st.builds(
    Sampling, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0, 2, 5]), st.sampled_from([1.0, 0.9, 0.5]), st.just(1.2)
)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.integers(0, 10_000))
def test_a_small_error_parts_answers_only_at_a_small_margin(sampling: Sampling, seed: int) -> None:
    random, error, steps = np.random.default_rng(seed), 1e-3, 12
    logits = random.normal(scale=2.0, size=(steps, 24))
    off = logits + random.uniform(-error, error, size=logits.shape)

    def answered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids: list[int] = []
        scores = []
        for step, row in enumerate(rows):
            scores.append(drawn_scores(row, ids, sampling))
            ids.append(draw(scores[-1], sampling, step))
        return np.array(ids), np.stack(scores)

    (ids, scores), (other, _) = answered(logits), answered(off)
    assert drawn_margin(ids, ids, scores, sampling) == 0.0
    assert drawn_margin(ids, other, scores, sampling) <= 2.5 * error


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0, 0.8)])
def test_another_answer_is_no_tie(sampling: Sampling) -> None:
    row = np.zeros((1, 1, 6))
    row[0, 0, 2] = 9.0
    said = [Recording("q", sampling=sampling, drawn_scores=row[0]) for _ in range(2)]
    said[0].arrays["drawn_ids"], said[1].arrays["drawn_ids"] = np.array([[2]]), np.array([[4]])
    (measured,) = compare_recordings(*said)
    assert measured.probe == "drawn_ids"
    assert measured.metrics["split_margin"] > 5.0
    assert measured.metrics["split_relative"] == pytest.approx(measured.metrics["split_margin"] / 7.5)
    absent = compare_recordings(said[0], Recording("q"))[0]
    assert absent.required and absent.not_probed


@pytest.mark.parametrize(
    ("sampling", "token", "gap"),
    [
        (Sampling(1.0, 2), 0, 2.0),  # falls behind the third
        (Sampling(1.0, 2), 1, 1.5),
        (Sampling(1.0, 2), 2, 1.5),  # passes the second
        (Sampling(1.0, 2), 3, 4.5),
        (Sampling(1.0, 4), 0, np.inf),
    ],
)
def test_the_edge_of_what_is_kept_is_as_far_as_the_nearest_token_beyond_it(
    sampling: Sampling, token: int, gap: float
) -> None:
    assert _edge(np.array([3.0, 2.5, 1.0, -2.0]), token, sampling) == gap


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0, 0.8)])
def test_what_all_tokens_have_in_common_makes_no_tie(sampling: Sampling) -> None:
    row = np.array([[0.0, 0, 9, 0, 6, 0]])

    def relative(common: float) -> float:
        said = [Recording("q", sampling=sampling, drawn_scores=row + common) for _ in range(2)]
        said[0].arrays["drawn_ids"], said[1].arrays["drawn_ids"] = np.array([[2]]), np.array([[4]])
        return compare_recordings(*said)[0].metrics["split_relative"]

    assert relative(0.0) > 0.1
    assert relative(1000.0) == pytest.approx(relative(0.0))


@pytest.mark.parametrize(("family", "counts"), [("cogvlm2", True), ("xverse-v", False)])
def test_a_penalty_counts_the_prompt_where_the_published_code_does(family: str, counts: bool) -> None:
    from export.checkpoint.opened import open_folder
    from parity_tests.second_opinion.subject import Subject

    subject = Subject(open_folder(Path(__file__).parents[2] / "export" / "demo" / "checkpoints" / family))
    question, sampling = Question("text", (), subject.drawn_ids()), Sampling(repetition_penalty=3.0)
    recording = record(subject.backend(), subject.processor, Limits(64, 64), question, 2, sampling=sampling)
    seen = question.input_ids[0] if counts else []
    expected = penalise(recording.arrays["prefill_logits"][0, -1].astype(np.float64), seen, 3.0)
    assert recording.drawn_scores is not None
    np.testing.assert_allclose(recording.drawn_scores[0], expected, atol=1e-4)
    assert recording.sampling is sampling
    (drawn,) = recording.arrays["drawn_ids"]
    assert drawn.tolist() == [draw(row, sampling, step) for step, row in enumerate(recording.drawn_scores)]
    assert drawn.shape == (2,)
