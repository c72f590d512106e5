"""The ONNX graph of a stage as TensorRT reads it: traced without weights, its cache axis fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from export.backends.onnx.trace import BorderTypes, trace_stage
from export.backends.onnx.writer import CODES, StageWeights, write_stage
from export.backends.tensorrt.kernels import OPSET, TrtKernels
from export.specs import ModelSpec
from runtime_py.contracts import DECODER

CACHE_PREFIXES = ("past_key_values.", "present.")


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
    model = trace_stage(spec, stage, kernels, dtype, OPSET, border)
    if stage == DECODER:
        _fix_capacity(model, kernels.capacity)
    _rename_nodes(model)
    inputs = (node.input[slot] for node in model.graph.node if node.op_type == "Attention" for slot in (0, 1))
    return StageGraph(stage, model, tuple(dict.fromkeys(inputs)))


def _rename_nodes(model: onnx.ModelProto) -> None:
    """Names that do not end in ``_`` and a number: the parser makes such names up for the layers of one node, and fails when
    another node has one already (tensorrt-rtx 1.7.1: "the new name is already in use")."""
    for index, node in enumerate(model.graph.node):
        node.name = f"{index:05d}.{node.op_type}"


def _fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """TensorRT's cache layer wants a fixed length: past and present are the same buffer of ``capacity`` positions."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(CACHE_PREFIXES):
            value.type.tensor_type.shape.dim[2].dim_value = capacity


def write_graph(graph: StageGraph, source: StageWeights, path: Path, progress: Callable[[int, int], None]) -> list[Path]:
    """Write the graph and its data file; return both. The weights are streamed (export.backends.onnx.writer)."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    files = write_stage(model, source, path, progress)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(CODES):
            tensor.data_type = onnx.TensorProto.INT4
            tensor.dims[-1] *= 2
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)
    return files
