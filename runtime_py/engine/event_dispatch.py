"""Events on their way from the engine to their receivers, batch by batch, in a thread of its own.

An event wakes its receiver, and a thread that wakes up wants the interpreter's lock. So the events of a step leave the
engine's thread in one batch, when the decoder is about to compute, which leaves the lock to others: receivers wake up beside
its work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from runtime_py.engine.logprobs import EngineEvent

Receiver = TypeVar("Receiver")


class EventDispatcher(Generic[Receiver]):
    """Passes events to a callback in the order in which they were added.

    Args:
        callback: called in this object's thread with each receiver and event; raises nothing.
    """

    def __init__(self, callback: Callable[[Receiver, EngineEvent], None]) -> None:
        self._callback = callback
        self._pending: list[tuple[Receiver, EngineEvent]] = []
        self._batches: SimpleQueue[list[tuple[Receiver, EngineEvent]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="event dispatcher", daemon=True)
        self._thread.start()

    def add(self, receiver: Receiver, event: EngineEvent) -> None:
        """Append an event to the pending batch; `flush`, called by the same thread, sends it."""
        self._pending.append((receiver, event))

    def flush(self) -> None:
        """Hand the pending batch to the thread."""
        if self._pending:
            self._batches.put(self._pending)
            self._pending = []

    def close(self) -> None:
        """Return once everything flushed has been passed on; nothing may be added afterwards."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            for receiver, event in batch:
                self._callback(receiver, event)
