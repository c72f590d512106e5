"""What a question costs that is about pictures of which some are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime_py.conftest import AttentionBackend, minicpm_prompt, minicpm_settings
from runtime_py.engine.preparation import Preparation
from runtime_py.generation.conversation import fingerprint
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.minicpm_v import Processor
from runtime_py.tokenizer import Tokenizer


def preparation(words: Tokenizer) -> Preparation:
    """Of a model that takes any number of pictures."""
    form = minicpm_prompt()
    several = replace(form, picture=replace(form.picture, most=0, first_question=False))
    processor = Processor(minicpm_settings(prompt=several.to_json()), words)
    return Preparation(Session(AttentionBackend(len(words.pieces)), processor, Limits(160, 16)), 1 << 20)


def test_a_new_picture_beside_a_known_one_is_processed_alone(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the prompt is the one that both give when neither is known."""
    draw = np.random.default_rng(1)
    one, two = (draw.integers(0, 256, (40, width, 3), dtype=np.uint8) for width in (31, 32))
    turns = [Message("user", "Which is red?", (0, 1, 2))]
    fresh, known = preparation(words).prepare(turns, [two, one, two]), preparation(words)
    known.prepare([Message("user", "Hello", (0,))], [one])
    asked: list[Any] = []
    images = known.session.processor.images

    def watched(pictures: Any) -> Any:
        asked.append(pictures)
        return images(pictures)

    monkeypatch.setattr(known.session.processor, "images", watched)
    prepared = known.prepare(turns, [two, one, two])
    assert len(asked) == 1 and len(asked[0]) == 1 and asked[0][0] is two
    np.testing.assert_array_equal(prepared.merged, fresh.merged)
    np.testing.assert_array_equal(prepared.origins, fresh.origins)
    np.testing.assert_array_equal(prepared.layout.input_ids, fresh.layout.input_ids)


def test_features_make_room_for_those_of_newer_questions(words: Tokenizer) -> None:
    """Two pictures fit; those of the newest question stay however many they are."""
    pictures = [np.full((28, 28, 3), value, np.uint8) for value in range(4)]
    keeping = preparation(words)

    def known_after(*asked: int) -> list[int]:
        keeping.prepare([Message("user", "Which?", tuple(range(len(asked))))], [pictures[number] for number in asked])
        keys = [fingerprint(picture) for picture in pictures]
        return [keys.index(key) for key in keeping._known]

    assert known_after(0) == [0]
    keeping.keep_bytes = 2 * next(iter(keeping._known.values())).nbytes
    assert known_after(1) == [0, 1]
    assert known_after(0) == [1, 0], "asked about again, so it is the newest"
    assert known_after(2) == [0, 2]
    assert sorted(known_after(3, 1, 0)) == [0, 1, 3]
    keeping.forget()
    assert not keeping._known
