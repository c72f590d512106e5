"""What a stream has shown so far is what there is of the answer, without white space at either end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime_py.engine.shown_text import ShownText


def follows_its_answer(pieces: list[str]) -> None:
    shown, said, told = ShownText(), "", ""
    for piece in pieces:
        said += piece
        told += shown.push(piece)
        assert told == said.strip()


@given(pieces=st.lists(st.text("a \n", max_size=4), max_size=8))
def test_a_stream_shows_its_answer_stripped(pieces: list[str]) -> None:
    follows_its_answer(pieces)


def test_white_space_is_shown_between_words_alone() -> None:
    follows_its_answer([" ", "\n", " red", " ", "", "\n", "and", " blue ", "\n"])
