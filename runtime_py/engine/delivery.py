"""Events on their way from the engine to those who asked, in a thread of its own.

Whoever receives an event wakes up for it, and whoever wakes up wants the interpreter. So the events of a step leave the
engine's thread together and with one call, when the decoder is about to work, which leaves the interpreter to others:
receivers are woken beside its work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from runtime_py.engine.likelihood import Sent

To = TypeVar("To")


class Delivery(Generic[To]):
    """Hands events on in the order in which they were added.

    Args:
        hand: called in this object's thread with each receiver and event; raises nothing.
    """

    def __init__(self, hand: Callable[[To, Sent], None]) -> None:
        self._hand = hand
        self._added: list[tuple[To, Sent]] = []
        self._batches: SimpleQueue[list[tuple[To, Sent]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
        self._thread.start()

    def add(self, receiver: To, sent: Sent) -> None:
        """Put an event behind the others; it leaves with the next `flush`, of the same thread."""
        self._added.append((receiver, sent))

    def flush(self) -> None:
        """Let what was added go on its way."""
        if self._added:
            self._batches.put(self._added)
            self._added = []

    def close(self) -> None:
        """Return when all that was flushed is handed on; nothing is added any more."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            for receiver, sent in batch:
                self._hand(receiver, sent)
