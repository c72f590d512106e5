"""Messages in the forms that callers have them: parts in order, pictures numbered as they stand, refusals with the turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime_py.errors import UsageError
from runtime_py.generation.conversation import fingerprint, read
from runtime_py.preprocess.base import Message


def shade(value: int) -> np.ndarray:
    return np.full((2, 3, 3), value, np.uint8)


def shades(pictures: list[np.ndarray]) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in pictures]


def test_parts_keep_their_order() -> None:
    parts = [
        {"type": "text", "text": "Before: "},
        {"type": "image"},
        "After: ",
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    turns, pictures = read([{"role": "user", "content": parts}], [shade(1), shade(2)])
    assert turns[0].content() == ("Before: ", 0, "After: ", 1, "?")
    assert turns[0].text == "Before: \nAfter: \n?"
    assert (turns[0].images, shades(pictures)) == ((0, 1), [1, 2])


def test_pictures_first_is_the_plain_message() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    turns, _ = read([{"role": "user", "content": content}], [shade(1)])
    assert turns == [Message("user", "What?", (0,))]
    assert read("What?", [shade(1)])[0] == turns


def test_pictures_are_numbered_as_they_stand() -> None:
    own = {"type": "image", "image": shade(9)}
    talk: list[Any] = [
        {"role": "user", "content": [own, {"type": "image"}, "a"]},
        {"role": "user", "content": [Image.fromarray(shade(7)), shade(8), {"type": "image"}]},
    ]
    turns, pictures = read(talk, [shade(1), shade(2)])
    assert [turn.images for turn in turns] == [(0, 1), (2, 3, 4)]
    assert shades(pictures) == [9, 1, 7, 8, 2]


def test_messages_that_name_pictures_backwards_or_twice() -> None:
    turns, pictures = read([Message("user", "a", (1, 0)), Message("user", "b", (1,))], [shade(1), shade(2)])
    assert [turn.images for turn in turns] == [(0, 1), (2,)]
    assert shades(pictures) == [2, 1, 2]


def test_pictures_that_nobody_claims_stand_in_front_of_the_first_question() -> None:
    talk: list[Any] = [{"role": "system", "content": "s"}, {"role": "user", "content": ["a", {"type": "image"}]}]
    turns, pictures = read(talk, [shade(1), shade(2)])
    assert turns[1].content() == (0, "a", 1)
    assert shades(pictures) == [2, 1]


def test_pictures_that_nobody_takes_are_refused() -> None:
    with pytest.raises(UsageError, match="no turn of the user's"):
        read([{"role": "tool", "content": "12:30"}], [shade(1)])


def test_an_empty_list_of_parts_is_an_empty_turn() -> None:
    assert read([{"role": "user", "content": []}], [])[0] == [Message("user", "")]


def test_pictures_of_other_pixels_or_another_shape_have_another_fingerprint() -> None:
    plain = shade(7)
    changed = plain.copy()
    changed[1, 2, 2] = 8
    assert fingerprint(plain) == fingerprint(plain.copy())
    assert len({fingerprint(picture) for picture in (plain, changed, plain.reshape(3, 2, 3), plain.reshape(6, 1, 3))}) == 4


@pytest.mark.parametrize("key", ["image", "path"])
def test_a_part_that_brings_its_picture_takes_none_of_the_others(tmp_path: Path, key: str) -> None:
    own, other = np.full((2, 3, 3), 7, np.uint8), np.zeros((4, 4, 3), np.uint8)
    Image.fromarray(own).save(tmp_path / "own.png")
    talk = [{"role": "user", "content": [{"type": "image", key: str(tmp_path / "own.png")}, {"type": "image"}]}]
    turns, pictures = read(talk, [other])
    assert turns[0].images == (0, 1)
    assert [picture.shape for picture in pictures] == [own.shape, other.shape]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "turn 2 (assistant) has the content None"),
        (3, "turn 2 (assistant) has the content 3"),
        ([{"type": "text"}], "part 1 of turn 2 is {'type': 'text'}"),
        ([{"type": "text", "text": None}], "part 1 of turn 2"),
        (["a", None], "part 2 of turn 2 is None"),
        ([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}], "part 1 of turn 2"),
        ([{"type": "image", "url": "http://x/y.png"}], "part 1 of turn 2 is a picture with url"),
        ([{"type": "image", "image": "a.png", "max_pixels": 3136}], "part 1 of turn 2 is a picture with max_pixels"),
        ([{"type": "image"}], "turn 2 speaks of more than the 0 pictures given"),
    ],
)
def test_content_of_another_form_is_refused_with_its_turn(content: object, told: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read([{"role": "user", "content": "a"}, {"role": "assistant", "content": content}], [])
    assert told in refusal.value.what


@pytest.mark.parametrize("row", ["text", {"content": "a"}, {"role": 3, "content": "a"}])
def test_a_turn_of_another_form_is_refused(row: Any) -> None:
    with pytest.raises(UsageError, match="turn 1 is"):
        read([row], [])
