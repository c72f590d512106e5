"""What keeps a loaded model whole: one step of work at a time, none after closing, and one kind of error for everything.

A model has one cache. Threads that share it wait for each other; an answer that another one has overtaken says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from runtime_py.errors import EdgeproofError, InternalError, MachineError, UsageError

Item = TypeVar("Item")


class Turns:
    """The right to work with a model: held by one thread at a time, by nobody once it is closed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._closed = False

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """Wait for the model, then work with it; ``what`` is named when that fails.

        Raises:
            UsageError: the model is closed.
            EdgeproofError: from the work; any other exception becomes one.
        """
        with self.held(what), last_resort(what):
            yield

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Keep the model from others for several turns; what goes wrong between them passes unchanged."""
        with self._lock:
            if self._closed:
                raise UsageError(f"{what}: the model is closed", "a model that is open", "load the package again")
            yield

    def steps(self, items: Iterator[Item], what: str) -> Iterator[Item]:
        """The same items, each made in a turn of its own, so that nobody waits for a consumer."""
        while True:
            with self.turn(what):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    @contextmanager
    def last(self) -> Iterator[bool]:
        """Wait for the model and close it; True unless it was closed before."""
        with self._lock:
            was_open, self._closed = not self._closed, True
            yield was_open


@contextmanager
def last_resort(what: str) -> Iterator[None]:
    """Whatever nobody foresaw becomes an `EdgeproofError` that names ``what``; the exception itself is its cause."""
    try:
        yield
    except EdgeproofError:
        raise
    except MemoryError as error:
        raise MachineError(
            f"{what}: this machine ran out of memory", "memory for the model and its inputs", "send smaller pictures"
        ) from error
    except OSError as error:
        raise MachineError(
            f"{what}: {error}", "a file that can be read, on a disk with room", "mend what it names, then try again"
        ) from error
    except Exception as error:
        raise InternalError(
            f"{what} failed: {type(error).__name__}: {error}",
            "no error here: a fault of the package or of edgeproof",
            "run `python -m runtime_py verify` on the package; if it is whole, report this",
        ) from error
