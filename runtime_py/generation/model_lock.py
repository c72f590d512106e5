"""The lock of a loaded model: one step of work at a time, and none after closing.

A model has one cache. Threads that share it wait for each other; an answer that another one has overtaken says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from runtime_py.errors import UsageError, wrap_errors

Item = TypeVar("Item")


class ModelLock:
    """Held by one thread at a time, which may take it again, and by nobody once the model is closed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._closed = False

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Wait for the model, then work with it; ``what`` is named when that fails.

        Raises:
            UsageError: the model is closed.
            EdgeproofError: from the work; any other exception becomes one.
        """
        with self.held(what), wrap_errors(what):
            yield

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Keep the model from other threads for several steps of work; exceptions between them pass unchanged."""
        with self._lock:
            if self._closed:
                raise UsageError(f"{what}: the model is closed", "a model that is open", "load the package again")
            yield

    def guard_each(self, items: Iterator[Item], what: str) -> Iterator[Item]:
        """The same items, each made under `guard`, which is released while a consumer works."""
        while True:
            with self.guard(what):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Wait for the model and close it; True unless it was closed before."""
        with self._lock:
            was_open, self._closed = not self._closed, True
            yield was_open
