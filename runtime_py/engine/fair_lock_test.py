"""Two threads get a fair lock in turns, however quick one of them is."""

from __future__ import annotations

import threading
import time

from runtime_py.engine.fair_lock import FairLock


def test_neither_of_two_threads_waits_for_more_than_one_turn_of_the_other() -> None:
    """One that takes the lock again as soon as it gave it back, and one that comes now and then."""
    lock, turns, over = FairLock(), 0, threading.Event()

    def busy() -> None:
        nonlocal turns
        while not over.is_set():
            with lock:
                turns += 1
                time.sleep(0.002)

    thread = threading.Thread(target=busy)
    thread.start()
    waited = []
    for _ in range(20):
        time.sleep(0.003)
        before = turns
        with lock:
            waited.append(turns - before)
    over.set()
    thread.join(30)
    assert max(waited) <= 2, "the turn at work, and one that had begun before"
