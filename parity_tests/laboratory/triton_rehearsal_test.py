"""A rehearsal ends whatever becomes of the restart, and is content with none that tried nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from parity_tests.laboratory.server_rehearsal import Pairs
from parity_tests.laboratory.triton_rehearsal import Rehearsal
from parity_tests.triton.process import TritonEnvironment, TritonProcess


def rehearsal(folder: Path, kill_at: int) -> Rehearsal:
    """Over a server that cannot start, because the environment has none."""
    pairs = Pairs.__new__(Pairs)  # no question is answered here
    pairs.pictures, pairs.pairs, pairs.alone = [], [], []
    return Rehearsal(TritonProcess(TritonEnvironment(folder), folder, folder), "demo", pairs, kill_at)


def test_nobody_waits_for_a_server_that_does_not_start_again(tmp_path: Path) -> None:
    run = rehearsal(tmp_path, 1)
    run._done("right")
    assert run._up.wait(30)
    (fault,) = run.finish()
    assert "did not start again" in fault and str(tmp_path) in fault


def test_a_kill_that_came_to_nothing_is_told(tmp_path: Path) -> None:
    run = rehearsal(tmp_path, 2)
    run._done("right")
    assert run.outcomes == Counter(right=1)
    (fault,) = run.finish()
    assert "not killed" in fault
    assert rehearsal(tmp_path, 0).finish() == []


def test_a_kill_that_cut_nothing_off_is_told(tmp_path: Path) -> None:
    run = rehearsal(tmp_path, 1)
    run.server.start = lambda seconds=120.0: None  # type: ignore[method-assign]
    run._done("right")
    (fault,) = run.finish()
    assert "cut nothing off" in fault
