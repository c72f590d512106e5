"""For a server: the graphs that engines are built from, kept in the package, so that the server's own machine can build.

An engine of TensorRT for RTX serves compute capabilities 8.0, 8.6, 8.9 and 12.x; one of TensorRT only the GPU it was built
on. And a build takes several times its weights, which the exporting machine may not have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from export.backends.base import Build
from export.backends.tensorrt.backend import FOLDER, engine_file, of_all_engines, record_file
from export.backends.tensorrt.engine import engine_graph, engine_profiles, write_record
from export.backends.tensorrt.engine_run import build_source
from export.backends.tensorrt.flavour import load_flavour
from export.backends.tensorrt.graph import write_graph
from export.backends.tensorrt.on_the_server import BLOCK, SOURCES
from export.backends.tensorrt.prediction import built_here
from export.graphs.stage_values import StageWeights
from export.package.manifest import assignment_rows
from export.plan.machine import available_memory
from runtime_py.backends.trt_device import MODULES
from runtime_py.errors import MachineError

_PLAIN, RTX = MODULES


def write_source(build: Build, stage: str) -> list[Path]:
    """Write a stage's graph with its weights, and what its engine is built for; returns their paths in the package."""
    folder = build.folder / FOLDER / SOURCES
    folder.mkdir(parents=True, exist_ok=True)
    graph, profiles = engine_graph(build, stage), engine_profiles(build.spec, stage, build)
    weights = StageWeights(stage, build.weights, build.codes, build.assignments)
    written = write_graph(graph, weights, folder / f"{stage}.onnx", partial(build.progress, f"tensorrt {stage}"))
    value = {
        "onnx_file": f"{stage}.onnx",
        "profiles": [{"name": profile.name, "shapes": profile.shapes} for profile in profiles],
        "attention_inputs": list(graph.attention_inputs),
        "batch": build.options.limits.batch,
        "exact": build.options.precision == "fp32",
    }
    written.append(write_record(folder / f"{stage}.json", value))
    return [path.relative_to(build.folder) for path in written]


def write_block(build: Build) -> list[Path]:
    """Write the part of the manifest that does not depend on who builds; returns its path in the package."""
    folder = build.folder / FOLDER / SOURCES
    folder.mkdir(parents=True, exist_ok=True)
    value = {**of_all_engines(build), "assignments": assignment_rows(build.assignments)}
    return [write_record(folder / BLOCK, value).relative_to(build.folder)]


def build_here(build: Build, stage: str) -> list[Path]:
    """Build a stage's engine from its source where `built_here` and TensorRT for RTX is installed; else nothing."""
    if not built_here(build.spec, build.options, build.assignments, available_memory()):
        return []
    try:
        flavour = load_flavour(RTX)
    except MachineError:
        return []
    source = build.folder / FOLDER / SOURCES / f"{stage}.json"
    value = build_source(source, build.folder / engine_file(stage), flavour)
    write_record(build.folder / record_file(stage), value)
    return [engine_file(stage), record_file(stage)]
