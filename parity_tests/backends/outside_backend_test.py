"""A backend from outside, registered in one place: planned for, exported, run, asked and judged like the product's own.

It stores every stage as a NumPy archive, int4 layers as codes and scales on a grid of its own, and runs them in PyTorch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from calibrate.command.cli import parser as calibrate_flags
from calibrate.request import CalibrationRequest
from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.record import Backend, BackendOption
from export.backends.registry import backends, grids, register, withdraw
from export.command.cli import parser as export_flags
from export.command.model_flags import request_of
from export.families.registry import recognise
from export.modules.build import layer_shapes, parameter_shapes
from export.pipeline import export, plan
from export.quantisation.choice import widened
from export.quantisation.codes import Codes
from export.quantisation.grid_blockwise import BlockGrid, ScaleRule
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.request import ExportRequest
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.verifier import PackageVerifier
from parity_tests.cli import main as parity
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Arrays
from runtime_py.backends.record import Ability, Distribution, OpeningChoices, RuntimeBackend
from runtime_py.backends.registry import runtime_backends
from runtime_py.contracts import STAGES
from runtime_py.errors import UsageError
from runtime_py.model import load
from targets.base import Limits, Target
from targets.registry import targets

BLOCK = 16
GRID = BlockGrid("archive_int4_b16", 4, BLOCK, ScaleRule.SIGNED)
CODES, SCALES = ".codes", ".scales"


# what runs a package


class ArchiveWeights:
    """A WeightProvider over the archives of a package."""

    def __init__(self, folder: Path, block: Mapping[str, Any]) -> None:
        self._archives = {stage: np.load(folder / block["stages"][stage]) for stage in STAGES}

    def tensor(self, target: str) -> torch.Tensor:
        stage, _, name = target.partition(".")
        archive = self._archives[stage]
        if name + CODES not in archive:
            return torch.from_numpy(archive[name]).float()
        codes = Codes(torch.from_numpy(archive[name + CODES]), torch.from_numpy(archive[name + SCALES]))
        return GRID.dequantise(codes)

    def shape(self, target: str) -> tuple[int, ...]:
        return tuple(self.tensor(target).shape)

    def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
        return self.tensor(target)[start:stop]


class ArchiveRunner:
    """The runtime: the stages' modules over the archive's weights."""

    name = "archive-torch"

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        family = recognise(folder)
        spec = family.spec(family.load_config(folder), EmptySource())
        self._inner = TorchBackend(spec, ArchiveWeights(folder, RUNTIME.block(manifest)))

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._inner.run(stage, inputs)

    def start(self, capacity: int) -> Any:
        return self._inner.start(capacity)

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        return self._inner.forward(state, inputs, logit_positions)

    def block_outputs(self, stage: str, inputs: Arrays) -> Mapping[str, np.ndarray]:
        return self._inner.block_outputs(stage, inputs)

    def close(self) -> None:
        self._inner.close()


def _open(folder: Path, manifest: Mapping[str, Any], _chosen: OpeningChoices) -> ArchiveRunner:
    return ArchiveRunner(folder, manifest)


RUNTIME = RuntimeBackend(
    name="archive",
    runtime_name="archive-torch",
    files="NumPy archives",
    distributions=(Distribution("torch", ">=2.9,<2.15", "export"),),
    open=_open,
    abilities=frozenset({Ability.WITHOUT_DEVICE, Ability.SEVERAL_SEQUENCES}),
)


# what makes one


class ArchiveExporter(ExportBackend):
    name: ClassVar[str] = RUNTIME.name

    def assignments(self, spec: ModelSpec, options: BuildOptions) -> dict[str, Assignment]:
        assignments = {}
        for layer in layer_shapes(spec):
            packed = options.precision == "int4" and layer.role in ("decoder", "head") and layer.columns % BLOCK == 0
            packed = packed and (layer.role == "decoder" or options.extra.get("head", "int4") == "int4")
            assignments[layer.name] = (
                Assignment(layer, Storage.INT4, GRID.name) if packed else Assignment(layer, Storage.FP32)
            )
        return assignments

    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        sizes = dict.fromkeys(STAGES, 0)
        for target, shape in parameter_shapes(spec).items():
            assignment = assignments.get(target.removesuffix(".weight"))
            count = math.prod(shape)
            packed = assignment is not None and assignment.storage is Storage.INT4
            sizes[target.split(".", 1)[0]] += count + 2 * count // BLOCK if packed else 4 * count
        return Prediction(sizes, {"weights": sum(sizes.values())}, 600 << 20, f"{self.name} decoder")

    def steps(self, build: Build) -> list[Step]:
        return [Step(stage, partial(_write, build, stage)) for stage in STAGES]

    def manifest(self, build: Build) -> dict[str, Any]:
        return {"stages": {stage: _file(stage).as_posix() for stage in STAGES}}


def _file(stage: str) -> Path:
    return Path("archive") / f"{stage}.npz"


def _write(build: Build, stage: str) -> list[Path]:
    arrays: dict[str, np.ndarray] = {}
    for target, shape in parameter_shapes(build.spec).items():
        owner, _, name = target.partition(".")
        layer = target.removesuffix(".weight")
        if owner != stage:
            continue
        if layer in build.assignments and build.assignments[layer].storage is Storage.INT4:
            codes = build.codes.rows(layer, 0, shape[0])
            arrays[name + CODES], arrays[name + SCALES] = codes.codes.numpy(), codes.scales.numpy()
        else:
            arrays[name] = build.weights.tensor(target).float().numpy()
    path = build.folder / _file(stage)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return [_file(stage)]


def _server_configuration(build: Build) -> list[Path]:
    """A file that this backend's own target reads."""
    path = Path("server.json")
    (build.folder / path).write_text(json.dumps({"context": build.options.limits.context}), encoding="utf-8")
    return [path]


TARGET = Target(
    name="archive-server",
    title="a machine with PyTorch",
    backends=(RUNTIME,),
    precisions=("int4", "fp32"),
    limits=Limits(context=512, prefill_chunk=128),
    contains=("archive/: an archive for each stage",),
    needs=("PyTorch",),
)

BACKEND = Backend(
    runtime=RUNTIME,
    exporter=ArchiveExporter,
    tools=("torch", "numpy"),
    grids=(GRID,),
    wider={Storage.FP32: ""},
    options=(BackendOption("head", "--head", ("int4", "fp32"), "how the language head is stored", ("int4",)),),
    targets=(TARGET,),
    target_files={TARGET.name: _server_configuration},
)


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
    arrays = dict(np.load(damaged / _file("decoder")))
    name = f"layers.1.mlp.down.weight{SCALES}"
    np.savez(damaged / _file("decoder"), **{**arrays, name: arrays[name][::-1]})
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
