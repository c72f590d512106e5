"""How requests that bring no answer end: what is counted, and that their question is let go of."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import pytest

from runtime_py.engine.answer import Token
from runtime_py.engine.conftest import until_nothing_is_held
from runtime_py.engine.logprobs import Event
from runtime_py.engine.running import Wish
from runtime_py.engine.service import Question, Ticket
from runtime_py.errors import InternalError
from runtime_py.generation.generate import settings_of
from runtime_py.serving.conftest import KEY, NAME, Server, question

pytest.importorskip("starlette")

from starlette.requests import Request

from runtime_py.serving.chat import ChatCompletions, Events, Gone, ServerLimits, outcome_of
from runtime_py.serving.metrics import Metrics
from runtime_py.serving.pictures import PictureLimits
from runtime_py.serving.refusal import Refusal, of_error
from runtime_py.serving.room import Reservation, Room


def counted(metrics: Metrics) -> dict[str, float]:
    """Requests by outcome."""
    rows = re.findall(r'requests_total{outcome="(\w+)"} (\S+)', metrics.text().decode())
    return {name: float(number) for name, number in rows}


class Caller:
    """A client of the ASGI interface that leaves when its request is sent, or after some events.

    Args:
        events: that it takes before it is gone.
    """

    def __init__(self, body: Mapping[str, Any], events: int) -> None:
        self._pieces = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self.left, self.taken = asyncio.Event(), 0
        self._most = events

    async def receive(self) -> MutableMapping[str, Any]:
        if self._pieces:
            return self._pieces.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.taken += message["type"] == "http.response.body"
        if self.taken >= self._most:
            self.left.set()
        await asyncio.sleep(0)


@pytest.mark.parametrize("events", [0, 1, 2])
def test_a_stream_whose_client_leaves_lets_go_of_its_question(server: Server, events: int) -> None:
    """Before the stream began, at its opening, at its first token."""

    async def ask() -> None:
        body = {"model": NAME, "messages": question("Hello"), "max_tokens": 1900, "stream": True, "ignore_eos": True}
        caller = Caller({**body, "logprobs": True}, events)
        scope = {
            "type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")],
            "asgi": {"spec_version": "2.3"},
        }  # fmt: skip
        answer = await ChatCompletions(server.service, NAME, ServerLimits(PictureLimits(), 1 << 20, 60.0), metrics)(
            Request(scope, caller.receive)
        )
        if events == 0:
            caller.left.set()
        await answer(scope, caller.receive, caller.send)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)

    metrics = Metrics(server.service)
    asyncio.run(ask())
    until_nothing_is_held(server.service)
    assert counted(metrics) == {"cancelled": 1.0}


SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}


def test_a_whole_answer_whose_client_leaves_lets_go_of_its_question(server: Server) -> None:
    async def ask() -> None:
        body = {"model": NAME, "messages": question("Hello"), "max_tokens": 1900, "ignore_eos": True}
        caller = Caller(body, 0)
        chat = ChatCompletions(server.service, NAME, ServerLimits(PictureLimits(), 1 << 20, 60.0), metrics)
        asked = asyncio.ensure_future(chat(Request(SCOPE, caller.receive)))
        while not server.service.engine.busy:
            await asyncio.sleep(0.001)
        caller.left.set()
        with pytest.raises(Gone):
            await asked

    metrics = Metrics(server.service)
    asyncio.run(ask())
    until_nothing_is_held(server.service)
    assert counted(metrics) == {"cancelled": 1.0}


@pytest.mark.parametrize(("spare", "status"), [(0, 400), (-1, 413)], ids=["as large as may be", "one byte more"])
def test_a_body_in_pieces_may_be_as_large_as_is_said(server: Server, spare: int, status: int) -> None:
    async def ask() -> None:
        caller = Caller(body, 0)
        await ChatCompletions(server.service, NAME, limits, metrics)(Request(SCOPE, caller.receive))

    body, metrics = {"model": NAME, "messages": []}, Metrics(server.service)
    limits = ServerLimits(PictureLimits(), len(json.dumps(body)) + spare, 60.0)
    with pytest.raises(Refusal) as refused:
        asyncio.run(ask())
    assert refused.value.status == status and counted(metrics) == {"refused": 1.0}


def test_a_body_that_does_not_arrive_is_not_waited_for(server: Server) -> None:
    async def never() -> MutableMapping[str, Any]:
        await asyncio.sleep(600)
        return {}

    async def ask() -> None:
        limits = ServerLimits(PictureLimits(), 1 << 20, 0.02)
        await asyncio.wait_for(ChatCompletions(server.service, NAME, limits, metrics)(Request(SCOPE, never)), 10)

    metrics = Metrics(server.service)
    with pytest.raises(Refusal) as late:
        asyncio.run(ask())
    assert late.value.status == 408 and counted(metrics) == {"timeout": 1.0}


@pytest.mark.parametrize(("ready", "seconds"), [(9, 0.0), (1, 0.02)], ids=["tokens lie ready", "none comes"])
def test_an_answer_ends_at_the_deadline(server: Server, ready: int, seconds: float) -> None:
    class Speaker:
        """A service that has said some tokens before it is asked for any, and says no more."""

        def ask(self, _: object, send: Callable[[Event], None]) -> Ticket:
            for number in range(ready):
                send(Token(number, "x"))
            return Ticket(send)

    async def ask() -> None:
        incoming = Request({"type": "http", "headers": []}, Caller({}, 0).receive)
        await incoming.body()
        speaker: Any = Speaker()
        held, metrics = Reservation(Room(), 1), Metrics(server.service)
        events = Events(speaker, Question((), (), Wish(settings)), held, metrics)
        now = asyncio.get_running_loop().time
        assert await events.next(incoming, now() + 60) == Token(0, "x")
        with pytest.raises(Refusal) as late:
            await events.next(incoming, now() + seconds)
        assert late.value.status == 504
        events.leave("timeout")

    settings = settings_of(server.service.package.generation)
    asyncio.run(ask())


def test_a_client_that_leaves_before_its_body_has_arrived_is_no_fault(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    request += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    with caplog.at_level(logging.ERROR):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(request.encode())
            time.sleep(0.1)
        time.sleep(0.2)
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Refusal(400, "no"), "refused"),
        (Refusal(408, "late"), "timeout"),
        (Refusal(504, "late"), "timeout"),
        (of_error(InternalError("a", "b", "c")), "failed"),
        (Gone(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (KeyError("a fault of ours"), "failed"),
    ],
)
def test_what_an_end_without_an_answer_is_counted_as(error: BaseException, outcome: str) -> None:
    assert outcome_of(error) == outcome
