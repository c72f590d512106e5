"""A visit to the page in a real Chromium, where one is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.laboratory.browser.program import installed
from parity_tests.laboratory.page_check.command import visited

pytest.importorskip("starlette")


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="no Chromium is installed")
def test_the_page_does_what_it_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from export.__main__ import main as export

    package = tmp_path / "out"
    demo = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--precision", "fp32"]
    assert export([*demo, "--skip-verify", "-q", "-o", str(package)]) == 0
    faults = visited(package, tmp_path, tmp_path / "shots", axe=None)
    assert faults == [], capsys.readouterr().out
    assert {f"used-{width}-{scheme}.png" for width in (390, 1280) for scheme in ("dark", "light")} <= {
        path.name for path in (tmp_path / "shots").iterdir()
    }


def test_without_a_browser_it_is_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from parity_tests.laboratory.browser import program
    from parity_tests.laboratory.page_check import command
    from runtime_py.errors import ExitCode

    monkeypatch.setattr(program, "PROGRAMS", ("no-such-program",))
    assert command.main(["--package", "anything"]) == ExitCode.ENVIRONMENT
    assert "not run" in capsys.readouterr().out
