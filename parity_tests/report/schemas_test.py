"""Real outputs against the JSON Schemas that ship: what the programs write is what the schemas say, and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.__main__ import main as export
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.judge import judge
from parity_tests.judging.metrics import Kind
from parity_tests.judging.presets import with_preset
from parity_tests.judging.results import Measurement
from parity_tests.report import json_report
from parity_tests.report.meaning_test import DIFFERENT, run_of
from parity_tests.report.report_test import sample_run
from runtime_py.files import schema


def hold(name: str, value: Mapping[str, Any]) -> None:
    """No problem under our own reading of a schema, and none under the library's."""
    assert schema.load(name).problems(value) == []
    jsonschema = pytest.importorskip("jsonschema")
    root = json.loads((schema.FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(root)
    assert [error.message for error in jsonschema.Draft202012Validator(root).iter_errors(value)] == []


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_packages_reports_and_its_manifest(exported: ExportedPackage, tmp_path: Path):
    package, out = exported("minicpm-v", "cpu", "int4"), tmp_path / "report"
    flags = ["--reference", str(GOLDENS / "minicpm-v"), "--steps", "2", "--report-dir", str(out), "--strict"]
    assert main(["--package", str(package), *flags]) == 5, "no int4 is what full precision is"
    hold("report", read(out / "report.json"))
    hold("run", read(out / "run.json"))
    hold("manifest", read(package / "manifest.json"))
    assert read(out / "report.json")["comparisons"][-1]["name"] == "strict"


def test_reports_of_everything_that_a_run_may_hold(tmp_path: Path):
    for run in (sample_run(), sample_run(1.0), sample_run(float("nan")), run_of(*DIFFERENT)):
        lost = Measurement("vision", "vision_encoder", Kind.FEATURES, (1, 4, 8), problem="shapes differ")
        broken = replace(run, comparisons=tuple(replace(c, measurements=(*c.measurements, lost)) for c in run.comparisons))
        for judgement in (judge(run), judge(broken), with_preset(judge(run), "release")):
            json_report.write_run(tmp_path / "run.json", judgement)
            hold("run", read(tmp_path / "run.json"))
            json_report.write(tmp_path / "report.json", json_report.report(judgement))
            hold("report", read(tmp_path / "report.json"))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_goldens_report(tmp_path: Path, precision: str):
    asked = ["--golden", str(GOLDENS / "minicpm-v"), "--target", "cpu", "--precision", precision]
    assert main([*asked, "--report-dir", str(tmp_path)]) == 0
    hold("golden_report", read(tmp_path / "report.json"))
    hold("run", read(tmp_path / "run.json"))


@pytest.mark.parametrize("target", ["cpu", "android", "desktop-gpu"])
def test_the_plan_of_an_export(target: str, capsys: pytest.CaptureFixture[str]):
    assert export(["--model", "minicpm-v", "--weights", "demo", "--target", target, "--dry-run", "--json"]) == 0
    hold("plan", json.loads(capsys.readouterr().out))


def test_a_schema_refuses_what_the_programs_do_not_write():
    value = json_report.report(judge(run_of(*DIFFERENT)))
    for change in ({"verdict": "fine"}, {"meaning": None}, {"unknown": 1}, {"answers": [{}]}):
        assert schema.load("report").problems({**deepcopy(value), **change})
