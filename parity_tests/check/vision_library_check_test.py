"""A package with a vision library: it is held against the reference too, and a fault in it alone is found and named."""

from __future__ import annotations

import json
import shutil
from operator import ne
from pathlib import Path
from typing import Any

import pytest

from export.source.hub import DEMO_FOLDER
from parity_tests.backends.examiner import TOWER
from parity_tests.check.package_check import CheckOptions, check
from runtime_py.backends import vision_library
from runtime_py.backends.records import VISION_LIBRARY
from runtime_py.backends.vision_library import chosen_variant
from runtime_py.errors import MachineError
from runtime_py.package import read

CHECKPOINT = DEMO_FOLDER / "minicpm-v"
OPTIONS = CheckOptions(steps=1, trust=True)


def runs_here(package: Path) -> None:
    try:
        chosen_variant(read(package).manifest["backends"]["onnx"][VISION_LIBRARY]["libraries"])
    except MachineError as error:
        pytest.skip(error.what)


def test_what_the_library_says_is_judged(tower_package: Path) -> None:
    runs_here(tower_package)
    judged = check(tower_package, CHECKPOINT, OPTIONS).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")

    def measured(title: str) -> list[Any]:
        alike = [each for each in judged.comparisons if each.comparison.title == title]
        probes = [probe.measurement for each in alike for probe in each.probes]
        return [probe.metrics for probe in probes if probe.probe.startswith("vision")]

    plain, ours = measured("kernels"), measured(f"{TOWER}: kernels")
    assert len(plain) == len(ours) > 1 and all(map(ne, plain, ours)), "something else runs"


def test_a_fault_in_the_library_alone_is_found_and_named(tower_package: Path, tmp_path: Path) -> None:
    runs_here(tower_package)
    copy = Path(shutil.copytree(tower_package, tmp_path / "package"))
    index = copy / read(copy).manifest["backends"]["onnx"][VISION_LIBRARY]["index"]
    told = json.loads(index.read_text(encoding="utf-8"))
    rows = {row[0]: row for row in told["parameters"]}
    one, other = (rows[f"blocks.{block}.mlp.fc2.weight_scales"] for block in (0, 1))
    one[4], other[4] = other[4], one[4]
    index.write_text(json.dumps(told), encoding="utf-8")
    result = check(copy, CHECKPOINT, OPTIONS)
    assert result.verdict == "fail"
    assert result.first_failure is not None and result.first_failure.startswith(f"{TOWER}: kernels")
    parting = result.judgement.run.divergence
    assert parting is not None and (parting.stage, parting.block) == ("vision_encoder", "")
    assert "vision library says otherwise than the graph" in parting.note


def test_where_it_does_not_run_the_package_is_not_all_run(tower_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> str:
        raise MachineError("this processor runs none", "another", "nothing")

    monkeypatch.setattr(vision_library, "chosen_variant", none)
    result = check(tower_package, CHECKPOINT, CheckOptions(steps=1, only="text", trust=True))
    assert (TOWER, "this processor runs none; nothing") in result.judgement.run.not_run
