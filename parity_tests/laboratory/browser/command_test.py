"""The exit code by what a browser says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parity_tests.laboratory.browser import command
from runtime_py.backends.attention_trial import trials
from runtime_py.errors import ExitCode


@pytest.mark.parametrize(("loop", "code"), [([1, 1, 1, 1], ExitCode.OK), ([1, 2, 3, 4], ExitCode.PARITY_FAILED)])
def test_a_variable_that_is_not_cleared_counts(
    loop: list[int], code: ExitCode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, Any] = {
        "loop": loop,
        "trials": [{"values": trial.expected.ravel().tolist()} for trial in trials()],
        "adapter": {"vendor": "drawn"},
        "onnxruntime": "1",
    }
    monkeypatch.setattr(command, "asked", lambda *_, **__: said)
    monkeypatch.setattr(command, "missing", lambda _: "")
    assert command.main(["--node-modules", str(tmp_path)]) == code
    assert (command.FAILS in capsys.readouterr().out) == (code != ExitCode.OK)
