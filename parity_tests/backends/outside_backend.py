"""A backend from outside, as somebody else would write one: its runtime, its exporter, its target and its record.

It stores every stage as a NumPy archive, int4 layers as codes and scales on a grid of its own, and runs them in PyTorch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.record import Backend, BackendOption
from export.families.registry import recognise
from export.modules.build import layer_shapes, parameter_shapes
from export.quantisation.codes import Codes
from export.quantisation.grid_blockwise import BlockGrid, ScaleRule
from export.quantisation.spec import Assignment, Storage
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Arrays
from runtime_py.backends.record import Ability, Distribution, OpeningChoices, RuntimeBackend
from runtime_py.contracts import STAGES
from targets.base import Limits, Target

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
    """Writes the archives."""

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
        return {"stages": {stage: archive_of(stage).as_posix() for stage in STAGES}}


def archive_of(stage: str) -> Path:
    """Inside the package."""
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
    path = build.folder / archive_of(stage)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return [archive_of(stage)]


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
