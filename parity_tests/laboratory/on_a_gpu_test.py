"""The steps of a run on a GPU: what is asked of which package, and what one that fails or takes too long is called."""

from __future__ import annotations

import json
from pathlib import Path

from parity_tests.laboratory import on_a_gpu
from parity_tests.laboratory.on_a_gpu import CUT_OFF, STEPS, Step, run, steps


def given(folder: Path, *more: str) -> list[Step]:
    for name in ("demo", "full"):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(json.dumps({"family": "minicpm-v"}), encoding="utf-8")
    words = ["--package", str(folder / "demo"), "--report-dir", str(folder / "report"), *more]
    return list(steps(on_a_gpu.parser("x").parse_args(words)))


def test_every_step_is_of_the_package_that_it_is_for(tmp_path: Path) -> None:
    full = tmp_path / "full"
    asked = given(tmp_path, "--full", str(full), "--full-package", str(full))
    assert {step.kind for step in asked} == set(STEPS)
    checks = [step for step in asked if step.kind == "gpu-check"]
    assert len(checks) == 1 and str(on_a_gpu.DEMOS / "minicpm-v") in checks[0].command
    assert [step.name for step in asked if step.served == full] == ["load-full"]  # nobody knows its right answers
    assert len({step.name for step in asked}) == len(asked)


def test_a_step_says_how_it_ended(tmp_path: Path) -> None:
    def ended(code: str, seconds: float = 60) -> int:
        return run(Step("rows", "rows", ("-c", code)), tmp_path, "CPUExecutionProvider", seconds)

    assert [ended("print('said')"), ended("raise SystemExit(5)"), ended("import time; time.sleep(60)", 0.5)] == [
        0,
        5,
        CUT_OFF,
    ]
    ended("print('said')")
    assert (tmp_path / "rows.txt").read_text(encoding="utf-8") == "said\n"
    missing = Step("serve", "answers", ("-c", "pass"), tmp_path / "no-package")
    assert run(missing, tmp_path, "CPUExecutionProvider", 60) != 0
    assert "no-package" in (tmp_path / "answers.txt").read_text(encoding="utf-8")
