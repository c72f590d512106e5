"""Where an answer ends does not hang on how its tokens part the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.engine.stop_text import StopText

LETTERS = st.text("abc", max_size=12)


def told(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop = StopText(stops)
    return "".join(map(stop.push, pieces)) + stop.finish(), stop.reached


@given(pieces=st.lists(LETTERS, max_size=5), stops=st.lists(LETTERS, max_size=4))
def test_an_answer_ends_alike_however_its_tokens_part_it(pieces: list[str], stops: list[str]) -> None:
    assert told(pieces, stops) == told(list("".join(pieces)), stops)


def test_the_text_that_is_whole_first_ends_the_answer() -> None:
    assert told(["abcd"], ["abcd", "c"]) == ("ab", True)
    assert told(["xbc"], ["c", "bc"]) == ("x", True)


def test_what_may_begin_a_stop_text_waits_and_nothing_else() -> None:
    stop = StopText(["abcd"])
    assert [stop.push(letter) for letter in "xababcxabcdx"] == ["x", "", "", "ab", "", "", "abcx", "", "", "", "", ""]
    assert stop.reached and stop.finish() == ""


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "reached"),
    [
        (["ab", "cd"], [], "abcd", False),
        (["ab", "cd", "ef"], ["cd"], "ab", True),
        (["ab", "c", "xd"], ["cd"], "abcxd", False),
        (["a", "b", "c", "d"], ["bcd", "bc"], "a", True),
        (["aaab"], ["aab"], "a", True),
        (["aa", "a", "b", "z"], ["aab"], "a", True),
        (["ab\n", "\n"], ["\n\n"], "ab", True),
        (["ab", "c"], ["cde"], "abc", False),
        (["ab"], ["", "b"], "a", True),
    ],
)
def test_stop_texts_are_found_across_tokens(pieces: list[str], stops: list[str], shown: str, reached: bool) -> None:
    assert told(pieces, stops) == (shown, reached)
