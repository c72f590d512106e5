"""Indices of tokens: which calls a library takes, and what they are of a part of a call."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_py.backends.token_routes import TokenRoutes
from runtime_py.errors import UsageError

EXPERTS = TokenRoutes(["language_index", "vision_index", "restore_index"], ["vision_index"])
DELTAS = TokenRoutes([], ["image_index"])
ALIKE = TokenRoutes([], [])


def experts(vision: list[bool]) -> dict[str, np.ndarray]:
    mask = np.array(vision)
    return {"language_index": np.flatnonzero(~mask), "vision_index": np.flatnonzero(mask)}


def test_which_calls_are_taken() -> None:
    text, picture = experts([False, False]), experts([False, True])
    assert EXPERTS.complete and ALIKE.complete and not DELTAS.complete
    assert EXPERTS.take(picture) and ALIKE.take({}) and DELTAS.take({"image_index": np.array([], np.int64)})
    assert not DELTAS.take({"image_index": np.array([1])})
    assert EXPERTS.text_alone(text) and not EXPERTS.text_alone(picture)


def test_a_part_of_a_call_has_its_own_numbers() -> None:
    language, vision, back = EXPERTS.within(experts([False, True, True, False, True]), 1, 4)
    assert (language.tolist(), vision.tolist()) == ([2], [0, 1])
    assert np.concatenate([language, vision])[back].tolist() == [0, 1, 2]
    assert DELTAS.within({}, 0, 3) == []


@pytest.mark.parametrize("language", [[0], [0, 1, 1], [0, 1, 2], [0, 5]])
def test_indices_that_miss_a_token_or_name_it_twice_are_refused(language: list[int]) -> None:
    with pytest.raises(UsageError, match="each once"):
        EXPERTS.within({"language_index": np.array(language), "vision_index": np.array([2])}, 0, 3)


@pytest.mark.parametrize(
    ("given", "absent"), [(["language_index"], []), (["vision_index", "restore_index"], ["image_index"]), ([1], [])]
)
def test_names_that_no_exporter_writes_are_refused(given: list[str], absent: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)):
        TokenRoutes(given, absent)
