"""Sessions opened once whichever threads ask, ahead or when asked for, and again after a failure."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_py.backends.stage_sessions import StageSessions, give_back_freed
from runtime_py.errors import PackageError


def test_expected_stages_open_side_by_side_and_only_once() -> None:
    together = threading.Barrier(2, timeout=30)
    opened: list[str] = []

    def open_stage(stage: str) -> str:
        together.wait()  # passed only while both are opening
        opened.append(stage)
        return stage.upper()

    sessions = StageSessions(open_stage)
    sessions.open_ahead(("tower", "decoder"))
    sessions.open_ahead(("decoder",))
    with ThreadPoolExecutor(4) as asking:
        assert list(asking.map(sessions, ["decoder", "tower", "decoder", "tower"])) == ["DECODER", "TOWER"] * 2
    assert sorted(opened) == ["decoder", "tower"]


def test_a_stage_opens_in_the_thread_that_asks_when_nobody_expected_it() -> None:
    opened: list[int] = []

    def open_stage(stage: str) -> str:
        opened.append(threading.get_ident())
        return stage

    sessions = StageSessions(open_stage)
    assert sessions("decoder") == sessions("decoder") == "decoder"
    assert opened == [threading.get_ident()]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_failure_is_raised_where_a_session_is_asked_for_and_tried_again(ahead: bool) -> None:
    tries: list[str] = []

    def open_stage(stage: str) -> str:
        tries.append(stage)
        if len(tries) == 1:
            raise PackageError("torn", "a whole graph", "copy it again")
        return stage

    sessions = StageSessions(open_stage)
    if ahead:
        sessions.open_ahead(["decoder"])
    with pytest.raises(PackageError, match="torn"):
        sessions("decoder")
    assert sessions("decoder") == "decoder"
    assert len(tries) == 2


def test_clear_waits_for_what_is_opening_and_forgets_it() -> None:
    going = threading.Event()
    opened: list[str] = []

    def open_stage(stage: str) -> str:
        assert going.wait(30)
        opened.append(stage)
        return stage

    sessions = StageSessions(open_stage)
    sessions.open_ahead(["decoder"])
    threading.Timer(0.05, going.set).start()
    sessions.clear()
    assert opened == ["decoder"]
    assert sessions("decoder") == "decoder"
    assert len(opened) == 2


def test_freed_memory_can_be_given_back_on_every_system() -> None:
    give_back_freed()
