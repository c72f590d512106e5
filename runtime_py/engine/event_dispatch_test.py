"""Events leave in batches and arrive in their order, all of them before the end."""

from __future__ import annotations

import threading

from runtime_py.engine.answer import Token
from runtime_py.engine.event_dispatch import EventDispatcher
from runtime_py.engine.logprobs import EngineEvent


def test_events_arrive_in_order_and_none_before_its_batch_is_flushed() -> None:
    received: list[tuple[str, EngineEvent]] = []
    threads: set[str] = set()
    came = threading.Event()

    def callback(receiver: str, event: EngineEvent) -> None:
        threads.add(threading.current_thread().name)
        received.append((receiver, event))
        came.set()

    dispatcher = EventDispatcher[str](callback)
    events = [(f"receiver {number % 3}", Token(number, "")) for number in range(20)]
    for place, (receiver, token) in enumerate(events):
        dispatcher.add(receiver, token)
        if place == 4:
            assert not came.wait(0.05) and not received
        if place % 5 == 4:
            dispatcher.flush()
            assert came.wait(30)
    dispatcher.flush()  # nothing is pending: nothing happens
    dispatcher.close()
    assert received == events and threads == {"event dispatcher"}
    dispatcher.close()
