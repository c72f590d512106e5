"""A server that is killed in the middle of many questions and started again, for whichever server it is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from parity_tests.laboratory.server_rehearsal import HUNDRED
from runtime_py.errors import MachineError

TRIES = 5
PAUSE = 0.2
"""Seconds before a question that was cut off is asked again."""
WIDTH = 160
"""Letters of what a client was told that are printed."""


class Killable(Protocol):
    """A server as a process."""

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def start(self) -> None:
        """Start it, again after a kill, and return when it can be asked."""
        ...

    def resident(self) -> float:
        """Megabytes that it holds."""
        ...


class KilledOnce:
    """Questions of many threads to a server that gets SIGKILL after so many answers.

    Args:
        kill_at: answers; 0 never.

    Attributes:
        outcomes: of the questions: what `ask` was given back, or ``lost``.
        told: what clients were told that were cut off, and how often; ``cut_off`` of them were told after the kill.
        memory: megabytes after each hundred answers, before the kill and after it.
        unstarted: why the server did not start again; empty where it did.
    """

    def __init__(self, server: Killable, kill_at: int) -> None:
        self.server, self.kill_at = server, kill_at
        self.outcomes, self.told = Counter[str](), Counter[str]()
        self.cut_off = 0
        self.memory: tuple[list[float], list[float]] = ([], [])
        self.unstarted = ""
        self._lock, self._up = threading.Lock(), threading.Event()
        self._up.set()
        self._killing: threading.Thread | None = None

    def ask(self, once: Callable[[], str]) -> None:
        """One question, asked again where it was cut off.

        Args:
            once: asks it and says what came of the answer; raises MachineError where there was none.
        """
        for _ in range(TRIES):
            self._up.wait()
            if self.unstarted:
                break
            try:
                said = once()
            except MachineError as error:
                with self._lock:
                    self.told[error.what] += 1
                    self.cut_off += self._killing is not None
                time.sleep(PAUSE)
                continue
            self._done(said)
            return
        self._done("lost")

    def finish(self) -> list[str]:
        """What is wrong beside the answers; waits for the restart.

        Returns:
            Sentences; none where there was no kill to be, or it did what it is for.
        """
        if not self.kill_at:
            return []
        if self._killing is None:
            return [f"the server was not killed: {self.kill_at} answers were not reached"]
        self._killing.join()
        if self.unstarted:
            return [f"the server did not start again: {self.unstarted}"]
        return [] if self.cut_off else ["the kill cut nothing off: no request was at work"]

    def lines(self, seconds: float) -> Iterator[str]:
        """What came of it in so many seconds, for people."""
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.outcomes.items()))
        yield f"{sum(self.outcomes.values())} answers in {seconds:.0f} s: {counts}"
        yield f"cut off and asked again: {sum(self.told.values())}, {self.cut_off} of them after the kill"
        for said, count in self.told.most_common():
            yield f"  {count} x {said[:WIDTH]}"
        for when, held in zip(("before the kill", "after it"), self.memory, strict=True):
            yield f"memory {when}, MB: {', '.join(f'{one:.1f}' for one in held)}; {slope(held)}"

    def _done(self, said: str) -> None:
        with self._lock:
            self.outcomes[said] += 1
            count = sum(self.outcomes.values())
            if count % HUNDRED == 0 and self._up.is_set():
                self.memory[self._killing is not None].append(self.server.resident())
            if count == self.kill_at:
                self._up.clear()
                self._killing = threading.Thread(target=self._kill)
                self._killing.start()

    def _kill(self) -> None:
        try:
            self.server.kill()
            self.server.start()
        except Exception as error:  # whatever it is, nobody may wait for a server that does not come
            self.unstarted = str(error) or type(error).__name__
        finally:
            self._up.set()


def slope(memory: Sequence[float]) -> str:
    """Of the readings but the first, which still fills caches."""
    if len(memory) < 3:
        return "too few readings"
    return f"{np.polyfit(np.arange(len(memory) - 1), memory[1:], 1)[0]:+.2f} MB a hundred"
