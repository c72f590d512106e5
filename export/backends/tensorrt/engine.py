"""One engine, from a stage's modules to the file in the package: trace, write, check memory, build apart, clean up."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path

import torch

from export.backends.base import Build
from export.backends.tensorrt.engine_process import EngineRequest
from export.backends.tensorrt.engine_run import engine_record, run_request
from export.backends.tensorrt.flavour import load_flavour
from export.backends.tensorrt.graph import StageGraph, stage_graph, write_graph
from export.backends.tensorrt.kernels import TrtKernels
from export.backends.tensorrt.prediction import engine_peak, stage_bytes
from export.backends.tensorrt.profiles import Profile, stage_profiles
from export.backends.tensorrt.storages import float_dtype
from export.graphs.stage_values import StageWeights
from export.graphs.trace import BorderTypes, border_contract
from export.package.aside import written_aside
from export.plan.machine import available_memory
from export.specs import ModelSpec
from runtime_py.errors import DoesNotFitError
from runtime_py.memory import human_bytes

log = logging.getLogger("edgeproof")


def build_stage_engine(build: Build, stage: str, engine: Path, record: Path) -> None:
    """Build the engine of a stage and write what is known about it beside it.

    Raises:
        DoesNotFitError: the build would need more memory than there is; nothing has been built then.
        MachineError: TensorRT is missing or failed.
        UnsupportedModelError: TensorRT cannot express the stage.
    """
    spec, options = build.spec, build.options
    flavour = load_flavour()
    _check_memory(stage, engine_peak(stage_bytes(spec, stage, options, build.assignments)))
    profiles = engine_profiles(spec, stage, build)
    graph = engine_graph(build, stage)
    engine = engine.resolve()  # the process that builds it has another working folder
    folder = engine.parent / f"{stage}.building"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        onnx_file = folder / f"{stage}.onnx"
        source = StageWeights(stage, build.weights, build.codes, build.assignments)
        write_graph(graph, source, onnx_file, partial(build.progress, f"tensorrt {stage}"))
        request = EngineRequest(
            onnx_file=str(onnx_file),
            engine_file=str(engine),
            flavour=flavour.name,
            profiles=[{name: [list(shape) for shape in shapes] for name, shapes in p.shapes.items()} for p in profiles],
            attention_inputs=list(graph.attention_inputs),
            batch=options.limits.batch,
            exact=options.precision == "fp32",
        )
        result = run_request(request, folder / "request.json")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    log.info("engine %s: %.1f s, peak %d MB", stage, result["seconds"], result["peak_bytes"] // 10**6)
    value = engine_record(flavour, [{"name": profile.name, "shapes": profile.shapes} for profile in profiles])
    write_record(record, value)


def write_record(path: Path, value: object) -> Path:
    """Write what is said of an engine beside it; returns its path."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return path


def engine_graph(build: Build, stage: str) -> StageGraph:
    """The graph that TensorRT is given, without weights."""
    limits = build.options.limits
    kernels = TrtKernels(build.assignments, limits.context, limits.batch)
    return stage_graph(build.spec, stage, kernels, getattr(torch, float_dtype(build.options)))


def engine_profiles(spec: ModelSpec, stage: str, build: Build) -> list[Profile]:
    """The profiles of a stage's engine."""
    contract = border_contract(spec, stage, BorderTypes("float32", float_dtype(build.options)))
    return stage_profiles(spec, stage, contract, build.options.limits, packed=build.options.precision == "int4")


def _check_memory(stage: str, predicted: int) -> None:
    available = available_memory()
    if predicted > available:
        raise DoesNotFitError(
            f"building the {stage} engine takes about {human_bytes(predicted)} of memory",
            f"at most the {human_bytes(available)} that can be taken here",
            "use a machine with more memory, free some, or export with --precision int4",
        )
