"""Events leave together and arrive in their order, all of them before the end."""

from __future__ import annotations

import threading

from runtime_py.engine.answer import Token
from runtime_py.engine.delivery import Delivery
from runtime_py.engine.likelihood import Sent


def test_nothing_leaves_before_it_is_let_go_and_everything_arrives_in_order() -> None:
    arrived: list[tuple[str, Sent]] = []
    threads: set[str] = set()
    came = threading.Event()

    def hand(receiver: str, sent: Sent) -> None:
        threads.add(threading.current_thread().name)
        arrived.append((receiver, sent))
        came.set()

    delivery = Delivery[str](hand)
    events = [(f"receiver {number % 3}", Token(number, "")) for number in range(20)]
    for place, (receiver, token) in enumerate(events):
        delivery.add(receiver, token)
        if place == 4:
            assert not came.wait(0.05) and not arrived
        if place % 5 == 4:
            delivery.flush()
            assert came.wait(30)
    delivery.flush()  # nothing was added: nothing happens
    delivery.close()
    assert arrived == events and threads == {"delivery"}
    delivery.close()
