"""A conversation becomes ids whatever its size, and one that is far too long is refused by its beginning."""

from __future__ import annotations

import time

import pytest

from runtime_py.errors import TooLongError
from runtime_py.preprocess.base import Message
from runtime_py.prompt.check_test import FREE, ONE, user
from runtime_py.prompt.encoder import CHARACTERS, FAR, PromptEncoder
from runtime_py.prompt.render import render

MOST = 50


class Letters:
    """A token for each ``width`` characters; notes how long the texts were that it was given."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.given: list[int] = []

    def encode(self, text: str) -> list[int]:
        self.given.append(len(text))
        return [7] * -(-len(text) // self.width)

    def decode(self, ids: object) -> str:
        raise NotImplementedError

    def token_id(self, token: str) -> int | None:
        return None


def encoder_of(words: Letters, most: int | None) -> PromptEncoder:
    made = PromptEncoder({"prompt": ONE.to_json()}, words)
    made.most = most
    return made


def test_a_text_that_is_far_too_long_is_refused_by_its_beginning() -> None:
    words = Letters()
    with pytest.raises(TooLongError, match=f"more than {FAR * MOST} tokens") as refused:
        encoder_of(words, MOST).encode([user("x" * 1_000_000)], {})
    assert f"at most {MOST}" in refused.value.expected
    assert sum(words.given) <= CHARACTERS * MOST


@pytest.mark.parametrize("most", [MOST, None])
def test_few_tokens_may_have_many_characters(most: int | None) -> None:
    """As runs of blanks have; they are encoded as one text, however they were looked at before."""
    text = "x" * (FAR * MOST * 100 - 1000)
    words = Letters(100)
    ids = encoder_of(words, most).encode([user(text)], {})
    assert ids.shape[1] == -(-words.given[-1] // 100) and words.given[-1] > len(text)


def test_what_may_be_cut_is_encoded_whole() -> None:
    words = Letters()
    assert encoder_of(words, None).encode([user("x" * 100_000)], {}).shape[1] > 100_000


def test_a_hundred_thousand_turns_are_put_together_in_a_moment() -> None:
    turns = [Message(role, "a") for _ in range(50_000) for role in ("user", "assistant")]
    began = time.perf_counter()
    (text,) = render(FREE, [*turns, user()], {})
    assert isinstance(text, str) and text.count("a") >= 100_000
    assert time.perf_counter() - began < 5
