"""Clients that never come to the point lose their connection, and others keep theirs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from runtime_py.serving.conftest import Server

pytest.importorskip("uvicorn")

from runtime_py.serving.patience import PatientProtocol


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "seconds", 0.5)
    monkeypatch.setattr(PatientProtocol, "read_seconds", 0.5)


def closed_after(server: Server, first: bytes, more: bytes) -> tuple[bytes, float]:
    """What comes back until the server closes, and after how many seconds; ``more`` is sent again and again meanwhile."""
    began, said = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(0.05)
        connection.sendall(first)
        while time.monotonic() - began < 10:
            try:
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                said += piece
            except TimeoutError:
                pass
            except OSError:
                break
            try:
                connection.sendall(more)
            except OSError:
                break
    return said, time.monotonic() - began


@pytest.mark.parametrize(("first", "more"), [(b"", b""), (b"GET /health HTTP/1.1\r\n", b"A: b\r\n")])
def test_a_head_that_does_not_end(server: Server, first: bytes, more: bytes) -> None:
    said, seconds = closed_after(server, first, more)
    assert said == b"" and 0.4 < seconds < 5


def test_a_body_that_goes_on_after_its_refusal(server: Server) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    said, seconds = closed_after(server, head, b"4\r\nabcd\r\n")
    assert said.startswith(b"HTTP/1.1 401") and seconds < 5


def test_two_requests_on_one_connection(server: Server) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    said, _ = closed_after(server, request + request, b"")
    assert said.count(b"HTTP/1.1 200") == 2


@contextmanager
def answering(application: Any) -> Iterator[tuple[str, int]]:
    """The address of a server of an ASGI application, which has ended when the context has."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=PatientProtocol, ws="none", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
    assert not thread.is_alive()


def test_an_answer_may_take_longer_than_a_head() -> None:
    """The next one on its connection too, whether it was asked for before the first one's end or after it."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.8)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with answering(application) as address, socket.create_connection(address, timeout=20) as connection:
        for asked in (2, 1):
            connection.sendall(request * asked)
            said = b""
            while said.count(b"done") < asked and (piece := connection.recv(1 << 16)):
                said += piece
            assert said.count(b"done") == asked


def long_answer(sent: list[float], ended: threading.Event, rest: float = 0.0) -> Any:
    """An application that answers with 100 MB, which no socket's buffer holds, notes when each of them was taken, and ends
    ``rest`` seconds after the last.
    """

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
                sent.append(time.monotonic())
            await asyncio.sleep(rest)
            await send({"type": "http.response.body", "body": b"end"})
        finally:
            ended.set()

    return application


def test_an_answer_that_is_not_read() -> None:
    """It is made no further than it is read, and then given up."""
    ended, sent = threading.Event(), [time.monotonic()]
    with answering(long_answer(sent, ended)) as address, socket.create_connection(address) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(20)
    assert max(later - before for before, later in pairwise(sent)) > 0.4, "it waited for the client"


def test_an_answer_that_is_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """In more time than a client has that reads nothing; once it has read, the end may be as long in coming."""
    monkeypatch.setattr(PatientProtocol, "read_seconds", 1.0)
    began, size, last = time.monotonic(), 0, b""
    with (
        answering(long_answer([], threading.Event(), 1.2)) as address,
        socket.create_connection(address, timeout=20) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while piece := slow.recv(1 << 20):
            size, last = size + len(piece), (last + piece)[-64:]
            if time.monotonic() - began < 1.2:
                time.sleep(0.05)
    assert size > 100 << 20 and b"end" in last
