"""Sessions of stages: opened when first asked for, or ahead of that in threads of their own."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any


class StageSessions:
    """One session a stage, whichever threads ask.

    Args:
        opened: makes the session of a stage; what it raises, every caller gets that waited for it, and the next one asks
            anew.
    """

    def __init__(self, opened: Callable[[str], Any]) -> None:
        self._opened = opened
        self._lock = threading.Lock()
        self._made: dict[str, Future[Any]] = {}

    def __call__(self, stage: str) -> Any:
        """The session, once it is open: opened by this thread unless another one is at it."""
        with self._lock:
            made = self._made.get(stage)
            future = self._made.setdefault(stage, Future()) if made is None else made
        if made is None:
            self._fill(stage, future)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._made.get(stage) is future and future.done():
                    del self._made[stage]
            raise

    def open_ahead(self, stages: Iterable[str]) -> None:
        """Begin to open those that are not, side by side; failures show where a session is asked for."""
        with self._lock:
            new = {stage: Future[Any]() for stage in dict.fromkeys(stages) if stage not in self._made}
            self._made |= new
        for stage, future in new.items():
            threading.Thread(target=self._fill, args=(stage, future), name=f"opening {stage}").start()

    def clear(self) -> None:
        """Let go of all, once those on their way are there."""
        with self._lock:
            made, self._made = self._made, {}
        wait(made.values())

    def _fill(self, stage: str, future: Future[Any]) -> None:
        try:
            session = self._opened(stage)
            give_back_freed()
            future.set_result(session)
        except BaseException as error:  # whoever waits raises it
            future.set_exception(error)


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library can (glibc); sessions leave some behind when they open."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
