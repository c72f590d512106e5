"""The runtime's TensorRT backend over the graphs of engines, which ONNX Runtime runs on the processor in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.backends.base import Build, BuildOptions
from export.backends.tensorrt.backend import TensorrtBackend
from export.backends.tensorrt.engine import engine_profiles, run_request
from export.backends.tensorrt.engine_process import EngineRequest
from export.backends.tensorrt.graph import StageGraph, write_graph
from export.checkpoint.opened import open_folder
from export.graphs.stage_values import StageWeights
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS
from export.stages import contracts
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.conftest import HostDevice
from runtime_py.backends.trt import TrtBackend
from runtime_py.backends.trt_plan import PAST, PRESENT, EnginePlan, read_plans
from runtime_py.contracts import STAGES
from runtime_py.package.files import rows_of
from targets.base import Limits
from targets.desktop_gpu import TARGET


def make_build(checkpoint: Path, precision: str, output: Path, limits: Limits) -> Build:
    """What an export of a checkpoint's folder would be built from."""
    opened = open_folder(checkpoint)
    spec, weights = opened.spec, opened.weights
    assert weights is not None
    options = BuildOptions(TARGET, precision, limits)
    assignments = TensorrtBackend().assignments(spec, options)
    codes = RoundToNearest(weights, assignments, GRIDS)
    processor = opened.family.make_processor(spec)
    return Build(spec, options, assignments, weights, codes, opened, output, lambda *_: None, processor)


@dataclass(frozen=True)
class Traced:
    """A build with its graphs traced once for all tests."""

    build: Build
    graphs: dict[str, StageGraph]

    def reference(self) -> TorchBackend:
        build = self.build
        if build.options.precision != "int4":
            return TorchBackend(build.spec, build.weights)
        return TorchBackend(build.spec, DequantisedWeights(build.weights, build.codes, build.assignments, GRIDS))

    def engine(self, stage: str, folder: Path) -> dict[str, Any]:
        """Build the stage's engine under ``folder`` in a process of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        onnx_file = folder / f"{stage}.onnx"
        source = StageWeights(stage, self.build.weights, self.build.codes, self.build.assignments)
        write_graph(self.graphs[stage], source, onnx_file, lambda *_: None)
        profiles = engine_profiles(self.build.spec, stage, self.build)
        request = EngineRequest(
            onnx_file=str(onnx_file),
            engine_file=str(folder / f"{stage}.engine"),
            flavour="tensorrt-rtx",
            profiles=[{name: [list(s) for s in shapes] for name, shapes in profile.shapes.items()} for profile in profiles],
            attention_inputs=list(self.graphs[stage].attention_inputs),
            batch=self.build.options.limits.batch,
            exact=self.build.options.precision == "fp32",
        )
        return run_request(request, folder / "request.json")


class OrtEngine:
    """Stands where an engine stands: the same graph, in ONNX Runtime on the processor; the cache lies where it is told."""

    def __init__(self, plan: EnginePlan, onnx_file: Path, device: HostDevice, cache_dtype: str) -> None:
        import onnxruntime

        self.plan, self.device, self.cache_dtype = plan, device, np.dtype(cache_dtype)
        self.session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.calls: list[str] = []
        self.sequences: list[int] = []

    def dtype(self, _name: str) -> np.dtype:
        return self.cache_dtype

    def run(self, inputs: Mapping[str, np.ndarray], cache: Mapping[str, int]) -> dict[str, np.ndarray]:
        rows = len(inputs["inputs_embeds"]) if cache else 0
        kept = {name: self._lying_at(address, (rows, *self.plan.caches[name])) for name, address in cache.items()}
        given = {**inputs, **kept}
        self.calls.append(self.plan.profiles[self.plan.choose({name: array.shape for name, array in given.items()})].name)
        self.sequences.append(rows)
        names = [value.name for value in self.session.get_outputs()]
        fed = {value.name: given[value.name] for value in self.session.get_inputs()}
        results = dict(zip(names, self.session.run(names, fed), strict=True))
        for name in [name for name in results if name.startswith(PRESENT)]:
            kept[PAST + name.removeprefix(PRESENT)][:] = results.pop(name)
        return results

    def _lying_at(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        assert address % 256 == 0
        size = int(np.prod(shape)) * self.cache_dtype.itemsize
        return self.device.inside(address, size).view(self.cache_dtype).reshape(shape)


class OrtBackedTrt(TrtBackend):
    """The runtime's TensorRT backend, its own code but for the engines and the device."""

    def __init__(self, traced: Traced, folder: Path) -> None:
        build = traced.build
        profiles = {stage: engine_profiles(build.spec, stage, build) for stage in STAGES}
        stages = {
            stage: {"file": f"{stage}.onnx", "profiles": [{"name": p.name, "shapes": p.shapes} for p in of_stage]}
            for stage, of_stage in profiles.items()
        }
        for stage, graph in traced.graphs.items():
            source = StageWeights(stage, build.weights, build.codes, build.assignments)
            write_graph(graph, source, folder / f"{stage}.onnx", lambda *_: None)
        dtype = "float32" if build.options.precision == "fp32" else "float16"
        self.block = {"cache": {"capacity": build.options.limits.context}, "stages": stages}
        manifest = {
            "backends": {"tensorrt": {**self.block, "stages": {stage: stages[stage] for stage in traced.graphs}}},
            "contracts": {name: contract.to_json() for name, contract in contracts(build.spec).items()},
            "files": rows_of(folder),
        }
        self.plans = read_plans(folder, manifest)
        self.device = HostDevice()
        self.cuda, self.stream = self.device, 0  # type: ignore[assignment]
        self._engines = {
            stage: OrtEngine(plan, folder / f"{stage}.onnx", self.device, dtype)  # type: ignore[misc]
            for stage, plan in self.plans.items()
        }
        self._alone = self._together = None
