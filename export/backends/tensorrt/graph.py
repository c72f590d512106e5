"""The ONNX graph of a stage as TensorRT reads it: traced without weights, its cache axis fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from export.backends.tensorrt.graph_passes import graph_passes
from export.backends.tensorrt.kernels import OPSET, TrtKernels
from export.graphs.stage_values import StageWeights
from export.graphs.trace import BorderTypes, trace_stage
from export.graphs.writer import write_stage
from export.specs import ModelSpec


@dataclass(frozen=True)
class StageGraph:
    """A graph whose initializers have names and shapes but no data.

    Attributes:
        attention_inputs: names of the query and key tensors of its `Attention` nodes.
    """

    stage: str
    model: onnx.ModelProto
    attention_inputs: tuple[str, ...]


def stage_graph(spec: ModelSpec, stage: str, kernels: TrtKernels, dtype: torch.dtype) -> StageGraph:
    """Trace a stage. The border is float32; the cache and everything inside is ``dtype``."""
    border = BorderTypes("float32", str(dtype).removeprefix("torch."))
    passes = graph_passes(stage, kernels.capacity)
    model = trace_stage(spec, stage, kernels, dtype, OPSET, border, passes)
    inputs = (node.input[slot] for node in model.graph.node if node.op_type == "Attention" for slot in (0, 1))
    return StageGraph(stage, model, tuple(dict.fromkeys(inputs)))


def write_graph(graph: StageGraph, source: StageWeights, path: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """Write the graph and its data file; return both. The weights are streamed (export.graphs.writer)."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    return write_stage(model, source, path, progress)
