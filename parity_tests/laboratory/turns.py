"""Calls that are timed beside one another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def in_turns(calls: Mapping[Name, Callable[[], object]], rounds: int, rest: float = 0.0) -> dict[Name, float]:
    """Seconds of each call, medians of rounds in which all take turns, behind one that does not count.

    Args:
        rest: seconds before each, in which threads of the one before fall asleep.
    """
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            time.sleep(rest)
            began = time.perf_counter()
            call()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
