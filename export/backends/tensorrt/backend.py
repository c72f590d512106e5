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
from export.backends.tensorrt.on_the_server import FOLDER, served, with_engines
from export.backends.tensorrt.storages import assign, float_dtype
from export.quantisation.spec import Assignment
from runtime_py.backends import records
from runtime_py.contracts import STAGES
from runtime_py.memory import human_bytes

if TYPE_CHECKING:
    from export.specs import ModelSpec


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
        if build.options.target.server is not None:
            return _server_steps(build)
        return [Step(f"tensorrt {stage}", partial(_build_stage, build, stage)) for stage in STAGES]

    def notes(self, spec: ModelSpec, options: BuildOptions, assignments: Mapping[str, Assignment]) -> tuple[str, ...]:
        from export.backends.tensorrt.prediction import unbuilt
        from export.plan.machine import available_memory

        capability = options.compute_capability
        if options.target.server is None:
            return ()
        if capability and not served(capability):
            return (f"engines for compute capability {capability} are left to build_engines.py on the GPU machine",)
        return tuple(
            f"the {stage} engine takes {human_bytes(peak)} to build, which this machine does not have: engines are left to "
            "build_engines.py on the GPU machine"
            for stage, peak in unbuilt(spec, options, assignments, available_memory()).items()
        )

    def written_again(self, build: Build, block: Mapping[str, Any], package: Path) -> list[Path]:
        return []  # no tool reads anything beside engines

    def stated_again(self, build: Build, block: Mapping[str, Any]) -> dict[str, Any]:
        return of_all_engines(build)

    def manifest(self, build: Build) -> dict[str, Any]:
        if not all((build.folder / record_file(stage)).is_file() for stage in STAGES):
            return {}
        return with_engines(of_all_engines(build), {stage: _read(build.folder / record_file(stage)) for stage in STAGES})


def of_all_engines(build: Build) -> dict[str, Any]:
    """What the manifest says of engines whoever builds them."""
    return {"cache": {"form": "in-place", "capacity": build.options.limits.context, "dtype": float_dtype(build.options)}}


def engine_file(stage: str) -> Path:
    """Path of a stage's engine in the package."""
    return Path(FOLDER) / f"{stage}.engine"


def record_file(stage: str) -> Path:
    """Path of what is known about an engine: profiles, flavour and version; the manifest is made from these."""
    return Path(FOLDER) / f"{stage}.json"


def _server_steps(build: Build) -> list[Step]:
    """The graphs are kept; engines are built from them where this machine can."""
    from export.backends.tensorrt import engine_sources

    return [
        *(Step(f"tensorrt {stage} source", partial(engine_sources.write_source, build, stage)) for stage in STAGES),
        Step("tensorrt block", partial(engine_sources.write_block, build)),
        *(Step(f"tensorrt {stage}", partial(engine_sources.build_here, build, stage)) for stage in STAGES),
    ]


def _build_stage(build: Build, stage: str) -> list[Path]:
    from export.backends.tensorrt.engine import build_stage_engine

    build_stage_engine(build, stage, build.folder / engine_file(stage), build.folder / record_file(stage))
    return [engine_file(stage), record_file(stage)]


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
