"""A rehearsal that is cut off ends: no thread of it goes on sending."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from parity_tests.laboratory.server_rehearsal import asking, disturbed


def test_broken_requests_end_with_the_rehearsal_however_that_ends() -> None:
    before, outcomes = threading.active_count(), Counter[str]()
    with pytest.raises(KeyboardInterrupt), disturbed("http://127.0.0.1:9", outcomes):
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_questions_that_wait_are_not_asked_when_it_is_cut_off() -> None:
    asked: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def ask(number: int) -> int:
        asked.append(number)
        begun.set()
        go_on.wait(30)
        return number

    with pytest.raises(KeyboardInterrupt), asking(2) as threads:
        threads.map(ask, range(100))
        assert begun.wait(30)
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt
    assert len(asked) <= 4
