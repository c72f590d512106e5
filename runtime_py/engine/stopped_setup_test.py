"""A run of tests that is told to end does so while it makes a package, and calls no test failed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from runtime_py.conftest import export_demo


class Stop(Exception):
    """Ends the export where the test has seen enough."""


def test_a_signal_that_ends_the_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = []

    def planned(*_: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise Stop

    monkeypatch.setattr("export.pipeline.make_plan", planned)
    with pytest.raises(Stop):
        export_demo(tmp_path / "out")
    assert handlers == [signal.getsignal(signal.SIGTERM)]
