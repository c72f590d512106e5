"""The bound that requests share: held up to the last byte, refused beyond it, given back once."""

from __future__ import annotations

import pytest

from runtime_py.serving.refusal import Refusal
from runtime_py.serving.room import Reservation, Room


def test_a_room_is_filled_to_its_last_byte_and_given_back_once() -> None:
    room = Room(100)
    one, other = Reservation(room, 10), Reservation(room, 10)
    one.add_bytes(60)
    other.add_bytes(40)
    assert room.free == 0
    with pytest.raises(Refusal, match="held for other requests") as refused:
        other.add_bytes(1)
    assert (refused.value.status, refused.value.kind, refused.value.code) == (429, "rate_limit_error", "queue_full")
    for _ in range(2):
        one.release()
        assert room.free == 60
    other.release()
    assert room.free == 100


def test_pictures_count_their_pixels_together_and_three_bytes_each() -> None:
    room = Room(100)
    held = Reservation(room, 12)
    held.add_picture(2, 3)
    held.add_picture(3, 2)
    assert room.free == 100 - 36, "as many pixels as are allowed"
    with pytest.raises(Refusal, match="13 pixels together; at most 12") as refused:
        held.add_picture(1, 1)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "messages", "image_too_large")
    held.release()
    assert room.free == 100


def test_what_comes_after_a_request_is_over_is_not_held() -> None:
    """Its picture may still be on the way when its client has left."""
    room = Room(100)
    held = Reservation(room, 12)
    held.release()
    with pytest.raises(Refusal):
        held.add_bytes(1)
    with pytest.raises(Refusal):
        held.add_picture(1, 1)
    assert room.free == 100
