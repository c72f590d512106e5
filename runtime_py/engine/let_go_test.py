"""An engine goes on while there is work, lets go of what nobody wants any more, and survives a call that fails."""

from __future__ import annotations

from typing import Any

import pytest

from runtime_py.engine.answer import Answer
from runtime_py.engine.engine_test import Asked, Inbox, Room, alone
from runtime_py.errors import EdgeproofError, InternalError
from runtime_py.model import Model


def test_a_step_says_whether_there_is_more_to_do(numpy_model: Model) -> None:
    """While a prompt is read, while an answer is given, and while a question waits for a slot."""
    room, inboxes = Room(numpy_model, 1, 8), [Inbox(), Inbox()]
    assert not room.engine.step()
    for number, inbox in zip((4, 1), inboxes, strict=True):
        room.submit(Asked(number, 0, 3), inbox)
    while room.engine.step():
        pass
    assert all(isinstance(inbox.end, Answer) for inbox in inboxes)


@pytest.mark.parametrize("steps", [0, 2, 30], ids=["waiting", "being read", "answering"])
def test_a_cancelled_question_costs_no_further_decoder_call(numpy_model: Model, steps: int) -> None:
    room, inbox = Room(numpy_model, 1, 8), Inbox()
    running = room.submit(Asked(4, 0, 90), inbox)
    for _ in range(steps):
        room.engine.step()
    assert bool(inbox.tokens) == (steps == 30) and inbox.end is None
    running.cancelled = True
    calls = list(numpy_model.backend.calls)  # type: ignore[attr-defined]
    assert not room.engine.step()
    assert numpy_model.backend.calls == calls and room.engine.busy == room.engine.queued == 0  # type: ignore[attr-defined]


def test_what_goes_wrong_with_one_leaves_the_others_alone(numpy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(numpy_model, 2, 16)
    good, bad = Inbox(), Inbox()
    room.submit(Asked(0, 1, 12), good)
    broken = room.submit(Asked(1, 2, 12), bad)
    monkeypatch.setattr(broken.choosing, "choose", lambda logits: 1 // 0)
    room.run()
    assert isinstance(bad.end, InternalError) and "ZeroDivisionError" in str(bad.end)
    assert isinstance(good.end, Answer) and good.end.ids == alone(numpy_model, Asked(0, 1, 12))


def test_a_cache_that_a_call_failed_on_is_not_kept(numpy_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that failed may have written anything into it."""
    forward = numpy_model.backend.forward

    def scribbles(state: Any, *given: Any) -> None:
        forward(state, *given)
        state.keys[0] = -state.keys[0]
        raise OSError("the device is lost")

    room, failed, again = Room(numpy_model, 1, 16), Inbox(), Inbox()
    room.submit(Asked(0, 1, 12), failed)
    while not failed.tokens:
        room.engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(numpy_model.backend, "forward", scribbles)
        room.run()
    assert isinstance(failed.end, EdgeproofError)
    room.submit(Asked(0, 1, 12), again)
    room.run()
    assert isinstance(again.end, Answer) and again.end.ids == alone(numpy_model, Asked(0, 1, 12))
