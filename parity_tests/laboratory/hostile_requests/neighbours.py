"""Clients who ask ordinary questions while others send hostile requests, and one who looks whether the server is well."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter

from parity_tests.laboratory.hostile_requests.servers import Server

COUNT = 2
UNANSWERED = (OSError, http.client.HTTPException, ValueError)
"""What `Server.at_work` raises of a server that does not answer, or not in its form."""


class Neighbours:
    """They ask from entry to exit.

    Args:
        pairs: how many questions there are to choose from.

    Attributes:
        outcomes: of their questions; waits: seconds of each look.
    """

    def __init__(self, server: Server, pairs: int) -> None:
        self._server, self._pairs = server, pairs
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.waits: list[float] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(COUNT)]
        self._threads.append(threading.Thread(target=self._look))

    def __enter__(self) -> Neighbours:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        draw = random.Random(number)
        while not self._over.is_set():
            self.outcomes[self._server.ask(draw.randrange(self._pairs))] += 1

    def _look(self) -> None:
        while not self._over.wait(0.2):
            began = time.monotonic()
            try:
                self._server.at_work()
                self.waits.append(time.monotonic() - began)
            except UNANSWERED as error:
                self.outcomes[f"health: {type(error).__name__}"] += 1


def quiet(server: Server, seconds: float) -> str:
    """Whether the server comes to rest, or that it does not answer."""
    ends = time.monotonic() + seconds
    busy, waiting = 0, 0
    while time.monotonic() < ends:
        try:
            busy, waiting = server.at_work()
        except UNANSWERED as error:
            return f"no answer: {type(error).__name__}"
        if not busy and not waiting:
            return "nothing at work"
        time.sleep(0.2)
    return f"still {busy} at work, {waiting} waiting"
