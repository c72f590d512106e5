"""A lock that two threads get in turns."""

from __future__ import annotations

import threading


class FairLock:
    """Neither of two threads gets it twice while the other waits.

    A `threading.Lock` goes to whichever thread is quicker, which is the one that has just released it.
    """

    def __init__(self) -> None:
        self._next, self._lock = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
