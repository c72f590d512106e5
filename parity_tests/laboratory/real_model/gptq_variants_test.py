"""The command line alone: what it measures needs another library's environment and a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.laboratory.real_model.gptq_variants import main
from runtime_py.errors import ExitCode


def test_help_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == ExitCode.OK
    assert "WORK" in capsys.readouterr().out


def test_a_folder_without_the_model_is_told_what_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "no language_model and no ids.json" in said and "parity_tests.laboratory.real_model --work" in said
