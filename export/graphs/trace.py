"""From a stage of PyTorch modules to an ONNX graph whose initializers have names and shapes but no data.

The stage is built and traced under PyTorch's fake tensors, so nothing as large as a weight is ever allocated. What follows
is a list of passes (`trace_passes`, then those of the backend), each with its declared effect (`export.passes`). Whoever
writes the file fills the initializers afterwards: each is called like its parameter below the stage. A backend puts its own
operators into the graph through its `Kernels`, with `torch.onnx.ops.symbolic`; a module made by such a kernel may declare
whatever parameters its operator reads (packed codes, scales) and so name further initializers.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from export.graphs.block_marks import BlockMarks, ResolveMarks
from export.graphs.exporter_shortcuts import known_results
from export.graphs.repeated_layers import DEEP, SHALLOWS, deepened, layers_are_alike
from export.modules.build import build_stage
from export.modules.kernels import Kernels
from export.passes.base import GraphPass, apply
from export.passes.clear_notes import ClearNotes
from export.passes.fold_constants import FoldConstants
from export.passes.name_axes import NameAxes
from export.passes.name_nodes import NameNodes
from export.passes.parameters import DeclareParameters, HideParameters
from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.contracts import DECODER, VISION, StageContract, TensorContract

INNER = "module."
"""What the wrapper below puts before every parameter path."""

CACHE_PREFIXES = ("past_key_values.", "present.")


@dataclass(frozen=True)
class BorderTypes:
    """The border of a graph where it differs from the stage's contract.

    Attributes:
        tensors, cache: float dtypes, apart from the dtype the parameters have and the graph computes in.
        cache_width: width of a head in the cache; 0 for the model's own.
    """

    tensors: str = "float32"
    cache: str = "float32"
    cache_width: int = 0


def border_contract(spec: ModelSpec, stage: str, border: BorderTypes) -> StageContract:
    """The stage's contract with the border's dtypes and cache width; logits stay float32."""
    contract = contracts(spec, border.tensors)[stage]

    def cached(tensor: TensorContract) -> TensorContract:
        width = border.cache_width or tensor.shape[-1]
        return replace(tensor, dtype=border.cache, shape=(*tensor.shape[:-1], width))

    def bordered(tensors: tuple[TensorContract, ...]) -> tuple[TensorContract, ...]:
        return tuple(cached(t) if t.name.startswith(CACHE_PREFIXES) else t for t in tensors)

    return StageContract(stage, bordered(contract.inputs), bordered(contract.outputs))


def trace_stage(
    spec: ModelSpec,
    stage: str,
    kernels: Kernels,
    dtype: torch.dtype = torch.float32,
    opset: int = 21,
    border: BorderTypes | None = None,
    passes: Sequence[GraphPass] = (),
    readable: bool = False,
) -> onnx.ModelProto:
    """Trace one stage.

    Args:
        kernels: the operators to put into the graph.
        dtype: of the parameters and of the computation; the border is cast to and from it.
        border: dtypes of the graph's inputs and outputs; float32 by default.
        passes: what the backend does to the graph, in order, after `trace_passes`.
        readable: for people and other tools, nodes are named after their modules and inner values keep their shapes.

    A deep stage of equal layers is traced with few of them (`export.graphs.repeated_layers`), which gives the same bytes.

    Returns:
        A model with inputs and outputs named as in the contract, dynamic axes included, and one initializer without
        data for every parameter of the stage that the graph reads, called by its path below the stage.

    Raises:
        onnx_ir.passes.PassError: a pass failed, for example since a dynamic axis was traced as a constant.
    """
    settings = (kernels, dtype, opset, border or BorderTypes(), passes, readable)
    layers = _layers(spec, stage)
    if layers >= DEEP and _alike(spec, stage, kernels, layers):
        short = [_traced(_with_layers(spec, stage, SHALLOWS[0]), stage, *settings)]
        for count in SHALLOWS if not _measures_caches(short[0]) else ():
            short.append(_traced(_with_layers(spec, stage, count + 1), stage, *settings))
            model = deepened(short[-2], short[-1], layers - count)
            if model is not None:
                return model
    return _traced(spec, stage, *settings)


def _layers(spec: ModelSpec, stage: str) -> int:
    """Layers of a stage; 0 where it has none."""
    return {DECODER: spec.decoder.layers, VISION: spec.vision.layers}.get(stage, 0)


def _with_layers(spec: ModelSpec, stage: str, layers: int) -> ModelSpec:
    if stage == DECODER:
        return replace(spec, decoder=replace(spec.decoder, layers=layers))
    return replace(spec, vision=replace(spec.vision, layers=layers))


def _alike(spec: ModelSpec, stage: str, kernels: Kernels, layers: int) -> bool:
    with torch.device("meta"):
        return layers_are_alike(build_stage(spec, stage, kernels), layers)


def _measures_caches(model: onnx.ModelProto) -> bool:
    """Whether a decoder reads how long its caches are; the order of these nodes is another for every number of caches."""
    return any(node.op_type == "Shape" and node.input[0].startswith(CACHE_PREFIXES) for node in model.graph.node)


def _traced(
    spec: ModelSpec,
    stage: str,
    kernels: Kernels,
    dtype: torch.dtype,
    opset: int,
    border: BorderTypes,
    passes: Sequence[GraphPass],
    readable: bool,
) -> onnx.ModelProto:
    """The stage traced layer by layer."""
    contract = border_contract(spec, stage, border)
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with fake, _default_dtype(dtype):
        module = build_stage(spec, stage, kernels).eval()
        BlockMarks().attach(module)
        inputs = _example_inputs(contract, _example_sizes(spec))
    wrapper = _Bordered(module, contract, contracts(spec, str(dtype).removeprefix("torch."))[stage]).eval()
    axes = {tensor.name: _dynamic(tensor) for tensor in contract.inputs}
    with torch.no_grad(), fake, _quiet(), known_results():
        program = torch.export.export(wrapper, (inputs,), dynamic_shapes=(axes,), strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            # what is wanted of it are the passes below, each with a declared effect
            optimize=False,
            opset_version=opset,
            input_names=list(contract.input_names()),
            output_names=[output.name for output in contract.outputs],
            verbose=False,
        )
    assert exported is not None
    with _quiet():
        apply(exported.model, [*trace_passes(contract, readable), *passes])
        return serialised(exported.model, readable)


def trace_passes(contract: StageContract, readable: bool = False) -> list[GraphPass]:
    """From what PyTorch's exporter gives to a graph as the contract says it, for every backend."""
    return [
        HideParameters(INNER),
        FoldConstants(),
        DeclareParameters(len(contract.inputs)),
        *([NameNodes(INNER)] if readable else []),
        ClearNotes(),
        ResolveMarks(),
        NameAxes(contract),
    ]


def serialised(model: ir.Model, shapes: bool = False) -> onnx.ModelProto:
    """The model as it is written, with or without the shapes of inner values (which no reader can infer past operators
    that are not the standard's).
    """
    proto = ir.to_proto(model)
    if not shapes:
        del proto.graph.value_info[:]
    proto.producer_version = model.producer_version or ""
    for node, written in zip(model.graph, proto.graph.node, strict=True):
        if node.doc_string == "":  # onnx_ir leaves the empty field out; with it, files equal those of earlier releases
            written.doc_string = ""
    return proto


class _Bordered(nn.Module):
    """Casts a stage's inputs to the dtypes it computes with and its outputs back, and nests its cache arguments."""

    def __init__(self, module: nn.Module, outside: StageContract, inside: StageContract) -> None:
        super().__init__()
        self.module = module
        self.outside = outside
        self.inside = {tensor.name: getattr(torch, tensor.dtype) for tensor in inside.inputs}

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        plain = {name: inputs[name].to(self.inside[name]) for name in inputs if not name.startswith(CACHE_PREFIXES)}
        if self.outside.stage != DECODER:
            return self._border((self.module(**plain),))
        cached = [value for name, value in inputs.items() if name.startswith(CACHE_PREFIXES)]
        past = list(zip(cached[::2], cached[1::2], strict=True))
        logits, present = self.module(**plain, past_key_values=past)
        return self._border((logits, *(half for cache in present for half in cache)))

    def _border(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pairs = zip(values, self.outside.outputs, strict=True)
        return tuple(value.to(getattr(torch, tensor.dtype)) for value, tensor in pairs)


def _example_inputs(contract: StageContract, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    def zeros(tensor: TensorContract) -> Tensor:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]
        return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))

    return {tensor.name: zeros(tensor) for tensor in contract.inputs}


def _example_sizes(spec: ModelSpec) -> dict[str, int]:
    """Sizes to trace with: none 0 or 1, so that no axis is taken for a constant."""
    sizes = {"batch": 2, "images": 3, "tokens": 5, "past": 7, "total": 12, "outputs": 4, "cells": 9}
    sizes |= {"image_rows": 6}
    sizes |= {axis: 6 + 2 * number for number, axis in enumerate(spec.decoder.layer_kind.own_axes(spec.decoder))}
    rows, columns = 6, 10
    patch = spec.image.patch
    sizes |= {"grid_rows": rows, "grid_columns": columns, "vision_tokens": rows * columns}
    return sizes | {"height": rows * patch, "width": columns * patch}


def _dynamic(tensor: TensorContract) -> dict[int, Any]:
    return {index: torch.export.Dim.AUTO for index, axis in enumerate(tensor.shape) if isinstance(axis, str)}


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters made inside have this dtype; converting a module afterwards fails under fake tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about fake weights and renamed axes; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
