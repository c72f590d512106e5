"""The composite GitHub Action, run here: every ``run:`` step in bash, in order, with the inputs that a workflow gives.

What is not ours is left out or stood in for: the marketplace's steps, the installation, and GitHub's own API behind ``gh``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parity_tests.laboratory.onnx_tamper import tamper

yaml = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
ACTION = REPOSITORY / ".github" / "actions" / "verify" / "action.yml"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")

GH = """#!/bin/bash
echo "$@" >> "$GH_CALLS"
for argument in "$@"; do
  if [[ "$argument" == body=@* ]]; then cp "${argument#body=@}" "$GH_CALLS.body"; fi
done
"""
"""In the place of GitHub's program: notes how it was called, and finds nothing."""


def action() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    return value


@dataclass
class Job:
    """A runner's folder and what steps left in it."""

    folder: Path
    inputs: dict[str, str]
    facts: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)

    def run(self, skipped: tuple[str, ...] = ("install",)) -> subprocess.CompletedProcess[str]:
        """All steps up to the first that fails; the last one's result."""
        (self.folder / "bin").mkdir(parents=True)
        # a link to the interpreter would lose its environment
        for name, text in (("gh", GH), ("python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')):
            (self.folder / "bin" / name).write_text(text, encoding="utf-8")
            (self.folder / "bin" / name).chmod(0o755)
        for step in action()["runs"]["steps"]:
            if "run" not in step or step["id"] in skipped or not self.wanted(step.get("if", "")):
                continue
            said = self.step(step["id"], step["run"], step.get("env", {}))
            if said.returncode:
                return said
        return said

    def step(self, name: str, script: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        output = self.folder / f"{name}.output"
        output.touch()
        given = {key: EXPRESSION.sub(lambda m: self.value(m[1]), str(text)) for key, text in env.items()}
        runner = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RUNNER_TEMP": str(self.folder),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "GH_CALLS": str(self.folder / "gh.calls"),
        }
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        said = subprocess.run(
            bash, env={**runner, **given}, cwd=self.folder, text=True, capture_output=True, check=False, timeout=600
        )
        pairs = (line.split("=", 1) for line in output.read_text(encoding="utf-8").splitlines())
        self.outputs[name] = dict(pairs)  # type: ignore[arg-type]
        return said

    def value(self, expression: str) -> str:
        """What an expression of the action stands for; KeyError for one that no runner knows."""
        first, _, second = (part.strip() for part in expression.partition("||"))
        if first.startswith("inputs."):
            found = self.inputs[first.removeprefix("inputs.")]
        elif first.startswith("steps."):
            _, step, _, name = first.split(".")
            found = self.outputs[step][name]
        else:
            found = self.facts[first]
        return found or (self.value(second) if second else "")

    def wanted(self, condition: str) -> bool:
        """Whether a step's ``if`` holds; comparisons joined by ``&&`` are all that the action uses."""
        parts = (part.split("==") for part in condition.split("&&") if part.strip())
        return all(self.value(left.strip()) == right.strip().strip("'") for left, right in parts)


def job(folder: Path, **given: str) -> Job:
    defaults = {name: str(spec.get("default", "")) for name, spec in action()["inputs"].items()}
    facts = {
        "github.base_ref": "main",
        "github.repository": "owner/project",
        "github.event_name": "pull_request",
        "github.event.pull_request.number": "7",
        "github.action_path": str(ACTION.parent),
    }
    return Job(folder, {**defaults, "token": "none", **given}, facts)


def test_no_input_is_pasted_into_a_script():
    steps = action()["runs"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps), "a script would run what an input says"
    assert [step["id"] for step in steps if "run" in step] == [
        "install", "export", "judge", "last", "diff", "comment", "verdict",
    ]  # fmt: skip
    assert all(step["shell"] == "bash" for step in steps if "run" in step)


@pytest.mark.slow
def test_a_package_inside_a_repository_is_judged(tmp_path: Path):
    made = job(tmp_path / "made", model="minicpm-v", weights="demo", target="server-cpu", comment="false")
    said = made.run()
    assert said.returncode == 0, said.stderr
    assert made.outputs["judge"]["verdict"] == "pass"


def test_what_cannot_be_judged_ends_with_the_reason(tmp_path: Path):
    said = job(tmp_path / "none", package=str(tmp_path / "no-such-package")).run()
    assert said.returncode == 2
    assert "no-such-package is no folder" in said.stderr and "Traceback" not in said.stderr


@pytest.mark.slow
def test_the_steps_export_judge_compare_and_comment(tmp_path: Path):
    first = job(tmp_path / "first", model="xverse-v", weights="demo", precision="int4")
    said = first.run()
    assert said.returncode == 0, said.stderr
    report = Path(first.outputs["judge"]["report"])
    assert first.outputs["judge"]["verdict"] == "pass"
    assert {"report.html", "report.md", "report.json", "junit.xml", "run.json"} <= {path.name for path in report.iterdir()}
    body = (tmp_path / "first" / "gh.calls.body").read_text(encoding="utf-8")
    assert body.startswith("<!-- edgeproof-parity -->\n# PASS")
    assert "What int4 costs: " in body
    assert "No earlier run to compare with." in body
    assert "repos/owner/project/issues/7/comments" in (tmp_path / "first" / "gh.calls").read_text(encoding="utf-8")

    package = str(tmp_path / "first" / "edgeproof-package")
    second = job(tmp_path / "second", package=package, previous=str(report), preset="strict")
    said = second.run()
    assert said.returncode == 5, "int4 changes what this demo says"
    assert second.outputs["judge"]["verdict"] == "fail"
    assert second.outputs["diff"]["worse"] == "false", "the figures are the same; a preset is no figure"
    body = (tmp_path / "second" / "gh.calls.body").read_text(encoding="utf-8")
    assert "# not worse: " in body
    assert "| what int4 costs |" in body
    assert (tmp_path / "second" / "summary.md").read_text(encoding="utf-8") == body

    tamper(Path(package), "decoder", "norm.weight", lambda values: values[::-1])
    third = job(tmp_path / "third", package=package, previous=str(report), comment="false")
    assert third.run().returncode == 5
    assert third.outputs["diff"]["worse"] == "true"
    assert not (tmp_path / "third" / "gh.calls.body").exists()
    assert "# WORSE: " in (tmp_path / "third" / "summary.md").read_text(encoding="utf-8")
