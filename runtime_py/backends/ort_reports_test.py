"""Who opens a package reports nothing to the maker of ONNX Runtime, and leaves no trace of having done so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPEN = "import runtime_py.command, onnxruntime; onnxruntime.get_available_providers()"


def left(home: Path, **told: str) -> list[str]:
    """Files that a program which loads ONNX Runtime leaves in the home folder."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    env = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(ROOT), **told}
    subprocess.run([sys.executable, "-c", OPEN], env=env, check=True, timeout=120)
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_onnx_runtime_reports_nothing(tmp_path: Path) -> None:
    if not left(tmp_path / "asked for", ORT_DISABLE_TELEMETRY="0"):
        pytest.skip("this build of ONNX Runtime reports nothing in any case")
    assert left(tmp_path / "not asked for") == []
