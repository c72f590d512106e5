"""The TensorRT backend: one engine a stage, built here and now, whether or not this machine has a GPU.

A stage is traced to standard ONNX, written with its weights beside the engine-to-be, built in a process of its own, and
the ONNX files are removed. A finished engine is a finished step: a resumed export does not build it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import Build, BuildOptions, ExportBackend, Prediction, Step
from export.backends.tensorrt.storages import assign, float_dtype
from export.quantisation.spec import Assignment
from runtime_py.backends import records
from runtime_py.contracts import STAGES

if TYPE_CHECKING:
    from export.specs import ModelSpec

FOLDER = "tensorrt"


class TensorrtBackend(ExportBackend):
    """fp32, fp16 and int4 engines; see docs/targets/desktop-gpu.md."""

    name = records.TENSORRT.name

    def assignments(self, spec: ModelSpec, options: BuildOptions) -> dict[str, Assignment]:
        from export.modules.build import layer_shapes

        return {layer.name: assign(layer, options) for layer in layer_shapes(spec)}

    def refuse(self, spec: ModelSpec, options: BuildOptions) -> None:
        from export.backends.tensorrt.support import unsupported
        from runtime_py.errors import UnsupportedModelError

        reasons = unsupported(spec, options)
        if reasons:
            raise UnsupportedModelError(
                f"{spec.family} for {options.target.name}: " + "; ".join(reasons),
                "stages that TensorRT has kernels and profiles for",
                "export this model for --target cpu; its graphs run in onnxruntime-gpu too",
            )

    def predict(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> Prediction:
        from export.backends.tensorrt.prediction import predict

        return predict(spec, options, assignments)

    def steps(self, build: Build) -> list[Step]:
        self.refuse(build.spec, build.options)
        return [Step(f"tensorrt {stage}", partial(_build_stage, build, stage)) for stage in STAGES]

    def manifest(self, build: Build) -> dict[str, Any]:
        records = {stage: _read(build.folder / record_file(stage)) for stage in STAGES}
        first = records[STAGES[0]]
        shared = ("flavour", "version", "compute_capabilities", "timing_cache", "deterministic")
        return {
            **{key: first[key] for key in shared},
            "cache": {"form": "in-place", "capacity": build.options.limits.context, "dtype": float_dtype(build.options)},
            "stages": {
                stage: {"file": engine_file(stage).as_posix(), "profiles": record["profiles"]}
                for stage, record in records.items()
            },
        }


def engine_file(stage: str) -> Path:
    """Path of a stage's engine in the package."""
    return Path(FOLDER) / f"{stage}.engine"


def record_file(stage: str) -> Path:
    """Path of what is known about an engine: profiles, flavour and version; the manifest is made from these."""
    return Path(FOLDER) / f"{stage}.json"


def _build_stage(build: Build, stage: str) -> list[Path]:
    from export.backends.tensorrt.engine import build_stage_engine

    build_stage_engine(build, stage, build.folder / engine_file(stage), build.folder / record_file(stage))
    return [engine_file(stage), record_file(stage)]


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
