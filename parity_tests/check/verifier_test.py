"""What an export takes while it checks, beside what was predicted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from parity_tests.laboratory.real_model.work import measured, run


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "android"])
def test_no_export_takes_more_than_was_predicted(tmp_path: Path, target: str) -> None:
    asked = [sys.executable, "-m", "export", "--model", "minicpm-v", "--weights", "demo", "--target", target]
    asked += ["--precision", "int4", "-o", str(tmp_path / "package")]
    predicted = json.loads(run([*asked, "--dry-run", "--json"]))["export_peak_bytes"]
    peak = measured(asked)["peak"]
    assert 0.4 * predicted < peak <= predicted
