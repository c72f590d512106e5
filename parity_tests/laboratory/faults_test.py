"""Deliberate faults: the package verifies, its check fails, and the report names the broken stage and block."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.laboratory.faults import FAULTS, Fault, of_pictures
from runtime_py import package as packages
from runtime_py.errors import PackageError


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_report_names_what_was_broken(fault: Fault, copied: ExportedPackage, tmp_path: Path):
    folder, report = copied("minicpm-v", "cpu", fault.precision), tmp_path / "report"
    fault.apply(folder)
    packages.verify(packages.read(folder))
    given = ["--package", str(folder), "--reference", str(GOLDENS / "minicpm-v"), "--steps", "3", "--inside", "never"]
    assert main([*given, "--report-dir", str(report)]) == 5
    value = json.loads((report / "report.json").read_text(encoding="utf-8"))
    divergence = value["divergence"]
    assert (divergence["stage"], divergence["block"], divergence["step"]) == (fault.stage, fault.block, fault.step)
    assert fault.inside in divergence["note"]
    assert value["verdict"] == "fail"
    place = ", ".join(
        [f"stage {fault.stage}", *([f"block {fault.block}"] if fault.block else [])]
        + ([f"answer step {fault.step}"] if fault.step else [])
    )
    assert f"({place})" in value["first_failure"]
    assert place in (report / "report.html").read_text(encoding="utf-8")
    assert value["first_failure"] in (report / "report.md").read_text(encoding="utf-8").splitlines()[0]
    failures = list(ElementTree.parse(report / "junit.xml").iter("failure"))
    assert failures
    assert all(place in (failure.text or "") for failure in failures)


@pytest.mark.parametrize("fault", of_pictures("fp32"), ids=lambda fault: fault.name)
def test_settings_of_pictures_are_named_where_a_family_has_them(fault: Fault, copied: ExportedPackage):
    folder = copied("qwen2-vl", "cpu", "fp32")
    fault.apply(folder)
    result = check(folder, GOLDENS / "qwen2-vl", CheckOptions(steps=1))
    divergence = result.judgement.run.divergence
    assert divergence is not None
    assert (result.verdict, divergence.stage, divergence.block) == ("fail", fault.stage, fault.block)
    assert f"stage {fault.stage}, block {fault.block}" in (result.first_failure or "")


def test_a_resampling_kernel_that_nobody_knows_is_a_package_error(copied: ExportedPackage):
    folder = copied("minicpm-v", "cpu", "fp32")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["runtime"]["resample"] = "bicubical"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert main(["--package", str(folder), "--reference", str(GOLDENS / "minicpm-v")]) == int(PackageError.exit_code)
