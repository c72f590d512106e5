"""What an export says about itself."""

from __future__ import annotations

import logging

import pytest

from export.command.progress import Progress


def test_lines_without_a_terminal_and_a_table_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgeproof")
    progress = Progress(bars=False)
    progress.start("weights", 1, 2)
    progress("weights", 5, 10)
    progress.stop(2048)
    assert caplog.messages == ["[1/2] weights"]
    table = progress.table().splitlines()
    assert table[1].split()[:3] == ["weights", "2.0", "KiB"]
    assert table[-1].split()[:3] == ["all", "2.0", "KiB"]


def test_quiet_says_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG, "edgeproof")
    progress = Progress(quiet=True, bars=True)
    progress.start("weights", 1, 1)
    progress("weights", 1, 1)
    progress.stop(1)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_bars_show_amount_and_rate(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress(bars=True)
    progress.start("weights", 1, 1)
    progress("weights", 512 << 20, 1 << 30)
    progress("weights", 1 << 30, 1 << 30)
    progress.stop(1 << 30)
    shown = capfd.readouterr().err
    assert "weights" in shown
    assert "B/s" in shown
    assert "100%" in shown
