"""A request's pictures on their way to a question: asked about before they are decoded, decoded once, held meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

from runtime_py.engine.service import Question
from runtime_py.errors import ImageError, MachineError
from runtime_py.preprocess.extent import Check
from runtime_py.serving import request
from runtime_py.serving.conftest import NAME, Server, data_url, question
from runtime_py.serving.pictures import PictureLimits, picture_at
from runtime_py.serving.question import Questions
from runtime_py.serving.refusal import Refusal
from runtime_py.serving.room import Reservation, Room

FREE = 1 << 20


def read(server: Server, room: Room, urls: list[str], check: Check | None = None, opened: Any = picture_at) -> Question:
    asked = request.read({"model": NAME, "messages": question("?", *urls)}, len(urls))
    held = Reservation(room, 1_000_000)
    return Questions(server.service, PictureLimits(check=check)).of(asked, held, asked.urls, opened)


def test_a_size_that_the_model_cannot_take_is_refused_before_it_is_held(server: Server, picture: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []

    def refuses(_name: str, width: int, height: int) -> None:
        seen.append((width, height))
        raise ImageError("it is too wide", "a narrower one", "cut it")

    room = Room(FREE)
    with pytest.raises(Refusal, match="it is too wide") as refused:
        read(server, room, [data_url(picture)], refuses)
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert seen == [(30, 40)] and room.free == FREE


def test_equal_pictures_are_decoded_and_held_once(server: Server, picture: np.ndarray) -> None:
    opened: list[str] = []

    def counted(url: str, limits: PictureLimits) -> np.ndarray:
        opened.append(url)
        return picture_at(url, limits)

    room, first, second = Room(FREE), data_url(picture), data_url(255 - picture)
    made = read(server, room, [first, second, first], opened=counted)
    assert opened == [first, second] and room.free == FREE - 2 * picture.size
    np.testing.assert_array_equal(made.pictures, [picture, 255 - picture, picture])
    assert made.turns[0].images == (0, 1, 2)


@pytest.mark.parametrize(
    ("status", "urls", "said"),
    [(400, 2, "picture 2 of 2: no"), (400, 1, "no"), (413, 2, "picture 2 of 2: no"), (429, 2, "no")],
)
def test_a_picture_is_named_where_it_is_at_fault(server: Server, status: int, urls: int, said: str) -> None:
    """By its number, if there are several, unless it is the server that has no room."""
    last = f"data:{urls}"

    def fails(url: str, _limits: PictureLimits) -> np.ndarray:
        if url == last:
            raise Refusal(status, "no")
        return np.zeros((1, 1, 3), np.uint8)

    with pytest.raises(Refusal) as refused:
        read(server, Room(FREE), [f"data:{number}" for number in range(1, urls + 1)], opened=fails)
    assert (refused.value.status, refused.value.message) == (status, said)


def test_what_is_no_fault_of_a_picture_passes_through(server: Server) -> None:
    def fails(_url: str, _limits: PictureLimits) -> np.ndarray:
        raise MachineError("the disk is full", "room", "make some")

    with pytest.raises(MachineError, match="the disk is full"):
        read(server, Room(FREE), ["data:1", "data:2"], opened=fails)
