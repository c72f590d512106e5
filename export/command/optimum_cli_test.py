"""``optimum-cli export edgeproof`` with optimum itself, which finds the command as it does in an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("optimum.commands.optimum_cli", reason="optimum is not installed: optimum-cli cannot be tried")

ROOT = Path(__file__).parents[2]
PROGRAM = "from optimum.commands.optimum_cli import main; main()"


def optimum_cli(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program with the registration where a wheel puts it, unless a wheel has put it there."""
    if find_spec("optimum.commands.register") is None or find_spec("optimum.commands.register.register_edgeproof") is None:
        register = place / "optimum" / "commands" / "register"
        register.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("register_edgeproof.py"), register)
    paths = os.pathsep.join([str(place), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_optimum_lists_and_runs_the_export(tmp_path: Path) -> None:
    assert "edgeproof" in optimum_cli(tmp_path, "export", "--help").stdout
    shown = optimum_cli(tmp_path, "export", "edgeproof", "--help").stdout
    assert "--target" in shown and "--push" in shown
    flags = ["--model", "minicpm-v", "--weights", "demo", "--target", "cpu"]
    planned = optimum_cli(tmp_path, "export", "edgeproof", *flags, "--dry-run", "--json")
    assert planned.returncode == 0 and '"minicpm-v"' in planned.stdout, planned.stderr
    wrong = optimum_cli(tmp_path, "export", "edgeproof", "--model", "nothing", "--target", "cpu")
    assert wrong.returncode == 2 and "  next: " in wrong.stderr
