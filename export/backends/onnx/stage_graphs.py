"""The graphs of a package: where they lie, how they are traced, and which values leave their blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.backends.base import BuildOptions
from export.backends.onnx.choices import TABLE_BLOCK, OnnxChoices, choices
from export.backends.onnx.consumers.held import joined_file
from export.quantisation.spec import Assignment
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION

if TYPE_CHECKING:
    from export.specs import ModelSpec

FOLDER = "onnx"
STEMS = {VISION: "vision_tower", CONNECTOR: "connector", EMBED: "embed_tokens", DECODER: "decoder_model_merged"}

BLOCK_OUTPUT = re.compile(r"^(?P<block>[\w.]+\.\d+)\.output$")


def chosen_for(spec: ModelSpec, options: BuildOptions) -> OnnxChoices:
    """The choices of a package of this model."""
    return choices(options, spec.decoder.layer_kind.reads_embedding, one_table(spec))


def one_table(spec: ModelSpec) -> bool:
    """Whether the decoder's graph may read its head from the embedding's file: they are one matrix, and no browser, which
    looks for weights under the graph's own name alone, can hold the model anyway.
    """
    from export.backends.onnx.consumers.held import Tool, obstacles

    fills = not spec.decoder.hidden % TABLE_BLOCK
    return spec.decoder.tied_head and fills and bool(obstacles(spec, Tool.TRANSFORMERS_JS))


def stage_file(stage: str, chosen: OnnxChoices) -> Path:
    """Path of a stage's graph in the package, with the suffix other tools expect of its precision."""
    if stage == DECODER:
        suffix = {"int4": "_q4f16" if chosen.cache == "float16" else "_q4", "fp16": "_fp16"}.get(chosen.precision, "")
    else:
        stored = {VISION: chosen.vision_precision, EMBED: chosen.embed_precision}.get(stage, chosen.precision)
        suffix = {"fp32": "", "int8": "_int8", "int8_weights": "_int8", "int4": "_q4", "fp16": "_fp16"}[stored]
        suffix = "_fp16" if stage == CONNECTOR and chosen.precision == "int4" else suffix
    return Path(FOLDER) / f"{STEMS[stage]}{suffix}.onnx"


def stage_files(spec: ModelSpec, options: BuildOptions) -> dict[str, Path]:
    """Stage to its graph's path in a package of these options."""
    chosen = chosen_for(spec, options)
    return {stage: stage_file(stage, chosen) for stage in STAGES}


def data_name(stage: str, chosen: OnnxChoices) -> str:
    """Of the file with a stage's weights. Vision encoder and connector lie as the two parts of the graph that joins them,
    by the names under which a browser looks for them (`export.backends.onnx.consumers`).
    """
    joined = f"{joined_file(stage_file(VISION, chosen)).name}_data"
    return {VISION: joined, CONNECTOR: f"{joined}_1"}.get(stage, f"{stage_file(stage, chosen).name}_data")


def block_outputs(graph: Path) -> dict[str, str]:
    """Block path (``layers.3``) to the name of the value that leaves it, read back from a written graph."""
    import onnx

    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    matches = (BLOCK_OUTPUT.match(name) for node in nodes for name in node.output)
    return {match["block"]: match.string for match in matches if match}


def stage_model(spec: ModelSpec, stage: str, chosen: OnnxChoices, assignments: Mapping[str, Assignment]) -> Any:
    """The finished graph of a stage as an onnx.ModelProto without weights."""
    from export.backends.onnx.cached_attention import cached_head_width
    from export.backends.onnx.description import describe, metadata
    from export.backends.onnx.graph_passes import graph_passes
    from export.backends.onnx.operator_set import OPSET
    from export.graphs.trace import BorderTypes, trace_stage

    border = BorderTypes(cache=chosen.cache, cache_width=cached_head_width(spec.decoder.head_dim))
    operators = kernels(chosen, assignments)
    model = trace_stage(spec, stage, operators, opset=OPSET, border=border, passes=graph_passes(stage), readable=True)
    describe(model, metadata(spec, stage, chosen.precision))
    return model


def stage_model_again(
    spec: ModelSpec, stage: str, precision: str, block: Mapping[str, Any], assignments: Mapping[str, Assignment]
) -> Any:
    """`stage_model` of a finished package, whose other choices its assignments show.

    Args:
        block: of its manifest.
    """
    chosen = OnnxChoices(precision, "", "", accuracy_level=block["accuracy_level"], cache=block["cache"])
    return stage_model(spec, stage, chosen, assignments)


def kernels(chosen: OnnxChoices, assignments: Mapping[str, Assignment]) -> Any:
    """The operators that a package of these choices is traced with."""
    import torch

    from export.backends.onnx.kernels import KernelChoices, OrtKernels

    return OrtKernels(assignments, KernelChoices(accuracy_level=chosen.accuracy_level, cache=getattr(torch, chosen.cache)))
