"""The scores of answers against figures worked out by hand from their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_tests.judging.answer_scores import anls, levenshtein, mean_scores, scores, vqa

WORDS = st.text("abc d", max_size=8)


def test_exact_and_contains_look_past_case_and_spaces_and_not_into_words():
    assert scores(" Red. ", ["red"])["exact"] == 1
    assert scores("The disc is red", ["red"]) == {"exact": 0.0, "contains": 1.0, "anls": 0.0}
    assert scores("it is bored", ["red"])["contains"] == 0
    assert scores("它是红色的", ["红色"])["contains"] == 1
    assert scores("red", []) == {}
    assert scores("", ["red"]) == {"exact": 0.0, "contains": 0.0, "anls": 0.0}


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("street", "street", 1.0), ("Stret", "street", 5 / 6), ("sxxxet", "street", 0.5), ("sxxxxt", "street", 0.0)],
)
def test_anls_is_one_minus_the_distance_and_nothing_below_one_half(answer: str, truth: str, right: float):
    assert anls(answer, ["other words altogether", truth]) == pytest.approx(right)


@pytest.mark.parametrize(
    ("answer", "same", "right"),
    [("two", 10, 1.0), ("2", 3, (3 * 2 / 3 + 7 * 1.0) / 10), ("the 2.", 1, 9 / 30), ("two dogs", 4, 0.0)],
)
def test_vqa_accuracy_of_ten_people_leaves_each_of_them_out_once(answer: str, same: int, right: float):
    people = ["2"] * same + ["five"] * (10 - same)
    assert vqa(answer, people) == pytest.approx(right)
    assert scores(answer, people)["vqa"] == pytest.approx(right)
    assert "vqa" not in scores(answer, people[:3])


def test_means_are_over_the_answers_that_have_the_score():
    assert mean_scores([{"exact": 1.0, "vqa": 0.5}, {"exact": 0.0}, {}]) == {"exact": 0.5, "vqa": 0.5}
    assert mean_scores([]) == {}


@given(WORDS, WORDS, WORDS)
@settings(max_examples=60)
def test_the_distance_is_a_metric(one: str, two: str, three: str):
    assert levenshtein(one, two) == levenshtein(two, one)
    assert (levenshtein(one, two) == 0) == (one == two)
    assert levenshtein(one, three) <= levenshtein(one, two) + levenshtein(two, three)
