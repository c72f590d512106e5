"""A server that is told to stop ends, whoever does not take its last words."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from runtime_py.serving import ending
from runtime_py.serving.ending import EndingServer


def test_an_answer_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "GOODBYE_SECONDS", 0.2)
    stopping, asked, closed = asyncio.Event(), threading.Event(), list[float]()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await asyncio.sleep(60)

    class Application:
        state = SimpleNamespace(stopping=stopping)
        __call__ = staticmethod(endless)

    service: Any = SimpleNamespace(close=lambda patience=0.0: closed.append(patience))
    config = uvicorn.Config(Application(), log_config=None, lifespan="off", ws="none")
    server = EndingServer(config, service, 0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        with socket.create_connection(listening.getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert asked.wait(10)
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive() and stopping.is_set() and closed == [0]


class Stopped:
    """An application that was never asked."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(stopping=asyncio.Event())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize("forced", [False, True])
def test_a_second_interrupt_closes_the_service_at_once(forced: bool) -> None:
    """The first close may wait for answers; a close without patience beside it ends them."""
    released, closed, ended = threading.Event(), list[float | None](), list[float | None]()

    def close(patience: float | None = None) -> None:
        closed.append(patience)
        if patience is None or not forced:
            released.set()
        assert released.wait(10)
        time.sleep(0.02)
        ended.append(patience)

    service: Any = SimpleNamespace(close=close)
    server = EndingServer(uvicorn.Config(Stopped(), log_config=None, lifespan="off", ws="none"), service, 30)
    assert server.config.timeout_graceful_shutdown == 30 + ending.GOODBYE_SECONDS
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.servers, server.force_exit = [], forced

    async def stopped() -> set[float | None]:
        await server.shutdown()
        return set(ended)

    assert asyncio.run(stopped()) == set(closed), "it waits until the service has closed"
    assert closed == ([30, None] if forced else [30])
