"""What is sent for one request of Triton's, and how one that brings no answer ends."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from runtime_py.engine.answer import Answer, Timing, Token
from runtime_py.engine.service import Question, Ticket
from runtime_py.generation.generate import Finish
from runtime_py.serving.refusal import Refusal
from runtime_py.serving.room import Reservation, Room
from runtime_py.triton.answering import Answering
from runtime_py.triton.conftest import Sender, TritonError, Utilities
from runtime_py.triton.model import TritonModel
from runtime_py.triton.model_test import TEN, request, wait_for_idle


@pytest.mark.parametrize("first", ["answer", "refusal"])
def test_nothing_is_sent_after_the_last_response_and_it_is_counted_once(first: str) -> None:
    sender, ended = Sender(), list[str]()
    room = Room(100)
    held = Reservation(room, 1)
    held.add_bytes(60)
    answering = Answering(Utilities, sender, True, (), held, 0.0, lambda *said: ended.append(said[1]))
    timing = Timing(1, 0, 1, 0, 0.0, 0.0, 0.0, 0.0)
    ends = {
        "answer": lambda: answering.finish(Answer("a", (1,), Finish.STOP, timing)),
        "refusal": lambda: answering.refuse(Refusal(404, "no")),
    }
    assert not answering.over
    ends[first]()
    assert answering.over and room.free == 100
    for end in ends.values():
        end()
    answering.token(Token(1, "a"))
    answering.look()
    assert len(sender.responses) == len(ended) == 1
    assert ended == ["stop"] if first == "answer" else sender.error.code == TritonError.NOT_FOUND and ended == ["refused"]


OUTCOMES = ("refused", "failed", "timeout", "cancelled")


def counted() -> list[float]:
    """Requests by `OUTCOMES` so far."""
    rows = [Utilities.rows.get(("edgeproof_requests", outcome)) for outcome in OUTCOMES]
    return [0 if row is None else row.value for row in rows]


def until_added(before: list[float], *added: int) -> None:
    """Wait until so many more have ended in each way; a request is counted just after its last response."""
    ends = time.monotonic() + 10
    while (now := [last - first for first, last in zip(before, counted(), strict=True)]) != list(added):
        assert time.monotonic() < ends, now
        time.sleep(0.005)


def test_a_fault_is_internal_and_counted_apart_from_refusals(served: TritonModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    before = counted()
    refused, failed, ours = request("a", sampling=b"{"), request("a"), request("a")
    served.execute([refused])
    assert refused.sender.error.code == TritonError.INVALID_ARG
    monkeypatch.setattr(served._reader, "read", fails)
    served.execute([failed])
    assert failed.sender.error.code == TritonError.INTERNAL
    assert str(failed.sender.error) == "a fault of the server (ZeroDivisionError)"
    monkeypatch.undo()
    monkeypatch.setattr(served.service._preparation, "prepare", fails)
    served.execute([ours])
    assert ours.sender.error.code == TritonError.INTERNAL and str(ours.sender.error) == "the server failed"
    wait_for_idle(served)
    until_added(before, 1, 2, 0, 0)


def test_a_cancelled_request_leaves_its_slot(served: TritonModel) -> None:
    before = counted()
    one = request(sampling={**TEN, "max_tokens": 2000})
    served.execute([one])
    while not one.sender.responses:
        time.sleep(0.005)
    (answering,) = served._open
    one.sender.cancelled = True
    assert one.sender.error.code == TritonError.CANCELLED
    wait_for_idle(served)
    assert answering.ticket is not None and answering.ticket.cancelled
    assert len(one.sender.responses) < 1000
    until_added(before, 0, 0, 0, 1)


@pytest.mark.parametrize("late", [False, True], ids=["before it is asked", "while it is asked"])
def test_a_request_that_is_cancelled_while_it_is_read_costs_no_answer(
    served: TritonModel, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    one, asked, over = request(sampling={**TEN, "max_tokens": 2000}), [], threading.Event()
    read, ask, whole = served._reader.read, served.service.ask, served._ask

    def leave() -> None:
        one.sender.cancelled = True
        assert one.sender.last.wait(60)

    def reads(*given: Any) -> Question:
        if not late:
            leave()
        return read(*given)

    def asks(*given: Any) -> Ticket:
        asked.append(ask(*given))
        leave()
        return asked[0]

    def to_its_end(*given: Any) -> None:
        whole(*given)
        over.set()

    monkeypatch.setattr(served._reader, "read", reads)
    monkeypatch.setattr(served.service, "ask", asks)
    monkeypatch.setattr(served, "_ask", to_its_end)
    served.execute([one])
    assert one.sender.error.code == TritonError.CANCELLED and over.wait(60)
    assert [ticket.cancelled for ticket in asked] == ([True] if late else [])
    wait_for_idle(served)


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (("token_ids",), {"token_ids"}),
        (("usage", "no_such"), {"usage"}),
        ((), {"text_output", "token_ids", "finish_reason", "usage"}),
    ],
)
def test_only_what_is_wanted_is_sent(served: TritonModel, wanted: tuple[str, ...], sent: set[str]) -> None:
    """Nothing at all that is wanted means everything."""
    one = request()
    one.wanted = wanted
    served.execute([one])
    assert one.sender.last.wait(60)
    assert {tensor.name() for piece in one.sender.responses for tensor in piece.output_tensors} == sent
