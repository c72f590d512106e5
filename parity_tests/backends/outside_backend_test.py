"""A backend from outside, registered in one place: planned for, exported, run, asked and judged like the product's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.command.cli import parser as calibrate_flags
from calibrate.request import CalibrationRequest
from export.backends.registry import backends, grids, register, withdraw
from export.command.cli import parser as export_flags
from export.command.model_flags import request_of
from export.pipeline import export, plan
from export.quantisation.choice import widened
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Storage
from export.request import ExportRequest
from parity_tests.backends.outside_backend import BACKEND, GRID, RUNTIME, SCALES, TARGET, archive_of
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.verifier import PackageVerifier
from parity_tests.cli import main as parity
from runtime_py.backends.registry import runtime_backends
from runtime_py.contracts import STAGES
from runtime_py.errors import UsageError
from runtime_py.model import load
from targets.registry import targets


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The one place."""
    register(BACKEND)
    yield
    withdraw(BACKEND)
    assert BACKEND.name not in backends() and TARGET.name not in targets() and RUNTIME.runtime_name not in runtime_backends()
    assert GRID.name not in GRIDS


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo checkpoint exported for it and checked on the way."""
    output = tmp_path_factory.mktemp("outside") / "package"
    return export(ExportRequest(model="minicpm-v", weights="demo", target=TARGET.name, output=output), PackageVerifier())


def manifest_of(package: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    return value


def test_it_is_planned_for_from_shapes_alone() -> None:
    made = plan(ExportRequest(model="minicpm-v", target=TARGET.name), PackageVerifier())
    assert list(made.parts) == [BACKEND.name]
    assert {group.grid for group in made.groups} == {"", GRID.name}
    assert made.device_bytes == {"weights": made.file_bytes}
    assert 3e9 < made.file_bytes < 12e9


def test_its_option_is_a_flag_of_export_and_calibrate() -> None:
    given = ["--model", "m", "--target", TARGET.name]
    asked = request_of(ExportRequest, export_flags("x").read([*given, "--head", "fp32"]))
    assert asked.chosen() == {"head": "fp32"}
    assert request_of(ExportRequest, export_flags("x").read(given)).chosen() == {}
    calibration = request_of(CalibrationRequest, calibrate_flags("x").read([*given, "--head", "fp32", "-o", "codes"]))
    assert calibration.export().chosen() == {"head": "fp32"}


def test_the_prediction_is_what_the_files_take(package: Path) -> None:
    predicted = plan(ExportRequest(model="minicpm-v", weights="demo", target=TARGET.name), PackageVerifier()).file_bytes
    written = sum(file.stat().st_size for file in (package / "archive").iterdir())
    assert written == pytest.approx(predicted, rel=0.1)


def test_the_package_is_whole_and_was_judged(package: Path) -> None:
    value = manifest_of(package)
    assert value["runtime_backend"] == RUNTIME.runtime_name and list(value["backends"]) == [BACKEND.name]
    assert value["verification"]["verdict"] == "pass"
    assert {row["comparison"] for row in value["verification"]["probes"]} == {"implementation", "loss"}
    assert "torch" in value["tools"]
    assert {"server.json", *(f"archive/{stage}.npz" for stage in STAGES)} <= {row["path"] for row in value["files"]}
    assert json.loads((package / "server.json").read_text()) == {"context": 512}


def test_it_answers_through_the_runtime(package: Path) -> None:
    picture = np.full((64, 96, 3), 200, np.uint8)
    with load(package, selftest=True) as model:
        assert model.backend.name == RUNTIME.runtime_name
        first = model.chat("What colour is it?", [picture])
    with load(package, backend=RUNTIME.runtime_name, verify="off") as model:
        assert model.chat("What colour is it?", [picture]).ids == first.ids
    with pytest.raises(UsageError, match="threads for backend 'archive-torch'"):
        load(package, threads=2)


def test_a_check_passes_and_names_the_block_of_a_damaged_layer(package: Path, tmp_path: Path) -> None:
    assert check(package, options=CheckOptions(steps=2)).verdict == "pass"
    assert parity(["--package", str(package), "--steps", "2", "--backend", RUNTIME.runtime_name]) == 0
    damaged = Path(shutil.copytree(package, tmp_path / "package"))
    arrays = dict(np.load(damaged / archive_of("decoder")))
    name = f"layers.1.mlp.down.weight{SCALES}"
    np.savez(damaged / archive_of("decoder"), **{**arrays, name: arrays[name][::-1]})
    judgement = check(damaged, options=CheckOptions(steps=2)).judgement
    assert str(judgement.verdict) == "fail"
    assert judgement.run.divergence is not None
    assert (judgement.run.divergence.stage, judgement.run.divergence.block) == ("decoder", "layers.1")


def test_its_own_option_is_checked_and_reaches_the_exporter() -> None:
    request = ExportRequest(model="minicpm-v", target=TARGET.name, options={"head": "fp32"})
    assert {group.storage for group in plan(request, None).groups if group.name.endswith("head")} == {"fp32"}
    with pytest.raises(UsageError, match="--head int8"):
        ExportRequest(model="minicpm-v", target=TARGET.name, options={"head": "int8"})
    with pytest.raises(UsageError, match="--head with --target archive-server, precision fp32"):
        ExportRequest(model="minicpm-v", target=TARGET.name, precision="fp32", options={"head": "int4"})
    with pytest.raises(UsageError, match="--head with --target cpu"):
        ExportRequest(model="minicpm-v", target="cpu", options={"head": "int4"})
    with pytest.raises(UsageError, match="--block-size with --target archive-server"):
        ExportRequest(model="minicpm-v", target=TARGET.name, block_size=32)


def test_a_choice_of_bits_widens_its_layers() -> None:
    made = plan(ExportRequest(model="minicpm-v", target=TARGET.name), None)
    assignments = made.parts[BACKEND.name].assignments
    layer = next(name for name, assignment in assignments.items() if assignment.storage is Storage.INT4)
    assert widened(BACKEND.name, assignments, {layer: "fp32"})[layer].storage is Storage.FP32
    with pytest.raises(UsageError, match="fp32 for archive"):
        widened(BACKEND.name, assignments, {layer: "fp16"})


def test_its_grids_are_among_all_grids() -> None:
    assert GRIDS[GRID.name] is GRID and grids()[GRID.name] is GRID
