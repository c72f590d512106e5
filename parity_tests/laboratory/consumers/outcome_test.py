"""Cells of the consumers' table: what counts as a failure, and errors that say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from parity_tests.laboratory.consumers.outcome import FAILS, compared, first_line, ids_compared
from parity_tests.laboratory.consumers.question import TEXT, Question

ASKED = [Question(TEXT, np.array([1]), None, 0, (5, 6), (2,))]


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError(), "ValueError"), (ValueError("\n"), "ValueError"), (ValueError("\na\nb"), "a")]
)
def test_an_error_is_a_line_whatever_it_says(error: Exception, said: str) -> None:
    def broken() -> list[tuple[int, ...]]:
        raise error

    assert first_line(error) == said
    assert compared(ASKED, broken) == f"{FAILS}: {said}"
    assert ids_compared([[1]], broken) == f"{FAILS}: ids: {said}"


def test_answers_are_compared_up_to_what_ends_them() -> None:
    assert compared(ASKED, lambda: [(5, 6, 2, 9)]) == "text equal (2)"
    assert FAILS in compared(ASKED, lambda: [(5, 7)])


def test_ids_of_one_text_that_differ_are_a_failure() -> None:
    assert ids_compared([[1], [2, 3]], lambda: [(1,), (2, 3)]) == "ids of 2/2 texts"
    assert ids_compared([[1], [2, 3]], lambda: [[1], [2]]) == f"{FAILS}: ids of 1/2 texts"
