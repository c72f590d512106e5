"""Indices of a call's tokens, whole and in parts, and those that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_py.backends.token_routes import TokenRoutes
from runtime_py.errors import UsageError

EXPERTS = TokenRoutes(["language_index", "vision_index", "restore_index"], ["vision_index"])
DELTAS = TokenRoutes(["image_index", "delta_index"], ["image_index"])


def experts(language: list[int], vision: list[int]) -> dict[str, np.ndarray]:
    rows = {"language_index": np.array(language, np.int64), "vision_index": np.array(vision, np.int64)}
    return rows | {"restore_index": np.argsort(np.concatenate(list(rows.values())))}


def deltas(rows: list[int], tokens: int) -> dict[str, np.ndarray]:
    index = np.full(tokens, len(rows))
    index[rows] = np.arange(len(rows))
    return {"image_index": np.array(rows, np.int64), "delta_index": index}


def told(parts: list[np.ndarray]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def test_a_part_of_a_prompt_has_indices_of_its_own() -> None:
    given = experts([0, 1, 5, 6], [2, 3, 4])
    assert told(EXPERTS.within(given, 0, 7)) == [[0, 1, 5, 6], [2, 3, 4], [0, 1, 4, 5, 6, 2, 3]]
    assert told(EXPERTS.within(given, 4, 7)) == [[1, 2], [0], [2, 0, 1]]
    given = deltas([2, 3, 5], 7)
    assert told(DELTAS.within(given, 0, 7)) == [[2, 3, 5], [3, 3, 0, 1, 3, 2, 3]]
    assert told(DELTAS.within(given, 3, 7)) == [[0, 2], [0, 2, 1, 2]]
    assert told(DELTAS.within(given, 6, 7)) == [[], [0]]
    assert TokenRoutes([], []).within({}, 0, 7) == []


def test_a_call_without_image_rows_is_text() -> None:
    assert DELTAS.text_alone(deltas([], 3)) and DELTAS.text_alone({}) and TokenRoutes([], []).text_alone({})
    assert not DELTAS.text_alone(deltas([1], 3)) and not EXPERTS.text_alone(experts([0], [1]))


@pytest.mark.parametrize(
    ("routes", "given"),
    [
        (EXPERTS, experts([0, 1], [1, 3])),
        (EXPERTS, experts([0, 1], [2, 4])),
        (EXPERTS, experts([0, 1, 2, 3], [4])),
        (EXPERTS, experts([0, 1, 2], [-1])),
        (EXPERTS, experts([0, 1], [2, 3]) | {"restore_index": np.array([0, 1, 3, 2])}),
        (EXPERTS, experts([0, 1], [2, 3]) | {"restore_index": np.array([0, 1, 2, 4])}),
        (EXPERTS, experts([0, 1], [2, 3]) | {"restore_index": np.array([0, 1, 2])}),
        (EXPERTS, experts([1, 0, 2, 3], []) | {"restore_index": np.arange(4)}),
        (EXPERTS, experts([0, 1], [3])),
        (EXPERTS, experts([0, 1, 1, 3], [2])),
        (EXPERTS, experts([0, 1, 2, 3], [2])),
        # what places would be if nobody asked for every token: a row behind the last one
        (EXPERTS, experts([0, 1], [3]) | {"restore_index": np.array([0, 1, 3, 2])}),
        (EXPERTS, experts([0, 1, 1], [3]) | {"restore_index": np.array([0, 2, 4, 3])}),
        (DELTAS, deltas([1, 1], 4)),
        (DELTAS, deltas([1, 2], 4) | {"delta_index": np.array([2, 1, 0, 2])}),
        (DELTAS, deltas([1, 2], 4) | {"delta_index": np.array([0, 0, 1, 2])}),
        (DELTAS, deltas([1, 2], 4) | {"delta_index": np.array([2, 0, 1, 3])}),
        (DELTAS, deltas([1, 2], 4) | {"delta_index": np.array([2, 0, 1])}),
        (DELTAS, deltas([1], 4) | {"image_index": np.array([1, 1])}),
        (DELTAS, deltas([1, 4], 5)),
        (DELTAS, deltas([1, 2], 4) | {"image_index": np.array([1, -2])}),
        (DELTAS, deltas([], 4) | {"delta_index": np.array([0, 0, 0, 1])}),
    ],
)
def test_indices_that_do_not_fit_the_tokens_are_refused(routes: TokenRoutes, given: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="do not fit the tokens 0 to 3"):
        routes.check(given, 4)


def test_indices_that_fit_are_taken() -> None:
    for given in (experts([0, 1], [2, 3]), experts([3, 0], [2, 1]), experts([0, 1, 2, 3], []), experts([], [3, 2, 1, 0])):
        EXPERTS.check(given, 4)
    for rows in ([], [2], [3, 1], [0, 1, 2, 3]):
        DELTAS.check(deltas(rows, 4), 4)
    TokenRoutes([], []).check({}, 4)


@pytest.mark.parametrize(
    ("given", "absent"),
    [
        ([1], []),
        (["restore_index", "a"], []),
        (["a", "restore_index"], ["b"]),
        (["a", "b", "delta_index"], ["a"]),
        (["delta_index"], []),
        (["restore_index"], []),
        ([], ["a"]),
    ],
)
def test_names_that_no_library_has_are_refused(given: Any, absent: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="indices"):
        TokenRoutes(given, absent)
