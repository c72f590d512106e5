"""Graphs in the shapes that other tools open, over the weights of a package's own: a few kilobytes each, no data.

The field has three graphs where a package has four stages: one from pixels to the rows of a picture, one from ids to
embeddings, a decoder. onnxruntime-genai puts the rows into the embeddings inside the second, and feeds the third no count of
logits: it takes one row of logits where the graph says that there is one. Sources: microsoft/onnxruntime-genai,
src/models/multi_modal.cpp, extra_inputs.cpp (an input ``num_logits_to_keep`` would go to the vision session) and logits.cpp.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime_py.backends.logit_rows import COUNT

FEATURES, ROWS, EMBEDS, IDS = "vision_features", "image_features", "inputs_embeds", "input_ids"
CONNECTOR_PREFIX = "connector."


def picture_graph(tower: onnx.ModelProto, connector: onnx.ModelProto) -> onnx.ModelProto:
    """Vision encoder and connector in one: what both take, to ``image_features`` float32 (rows of all pictures, hidden)."""
    joined, behind = _copy(tower), _copy(connector)
    first, second = joined.graph, behind.graph
    made_here = {value.name for value in first.output}
    kept = made_here | {value.name for value in second.input}
    _rename(second, kept)
    width = second.output[0].type.tensor_type.shape.dim[-1].dim_value
    rows = second.output[0].name
    first.value_info.extend([*first.output, *second.value_info, *second.output])
    first.node.extend(second.node)
    first.initializer.extend(second.initializer)
    first.input.extend(value for value in second.input if value.name not in made_here)
    _constant(first, "image_rows_shape", np.array([-1, width], np.int64))
    first.node.append(helper.make_node("Reshape", [rows, "image_rows_shape"], [ROWS], name="/rows/Reshape"))
    del first.output[:]
    first.output.append(helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, ["image_rows", width]))
    return joined


def embedding_graph(embed: onnx.ModelProto, placeholder: int) -> onnx.ModelProto:
    """Ids and ``image_features`` (rows, hidden) to embeddings: the rows stand, in order, where ``placeholder`` did."""
    joined = _copy(embed)
    graph = joined.graph
    text = "text_embeds"
    for node in graph.node:
        node.output[:] = [text if name == EMBEDS else name for name in node.output]
    width = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    graph.value_info.add(name=text, type=graph.output[0].type)
    graph.input.append(helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, ["image_rows", width]))
    _constant(graph, "placeholder", np.array(placeholder, np.int64))
    graph.node.extend(
        [
            helper.make_node("Equal", [IDS, "placeholder"], ["is_row"], name="/rows/Equal"),
            helper.make_node("NonZero", ["is_row"], ["row_axes"], name="/rows/NonZero"),
            helper.make_node("Transpose", ["row_axes"], ["row_places"], name="/rows/Transpose", perm=[1, 0]),
            helper.make_node("ScatterND", [text, "row_places", ROWS], [EMBEDS], name="/rows/ScatterND"),
        ]
    )
    return joined


def last_logits_graph(decoder: onnx.ModelProto) -> onnx.ModelProto:
    """The decoder with the logits of the last token alone, and no input for their number."""
    joined = _copy(decoder)
    graph = joined.graph
    border = [value for value in graph.input if value.name != COUNT]
    del graph.input[:]
    graph.input.extend(border)
    _constant(graph, COUNT, np.array(1, np.int64))
    logits = next(value for value in graph.output if value.name == "logits")
    several = logits.type.tensor_type.shape.dim[1].dim_param
    for value in (*graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == several:
                axis.dim_value = 1
    return joined


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def _rename(graph: onnx.GraphProto, kept: set[str]) -> None:
    """Put a prefix before every name but those of ``kept``, so that two graphs can lie in one."""

    def renamed(name: str) -> str:
        return name if not name or name in kept else CONNECTOR_PREFIX + name

    for node in graph.node:
        node.name = f"/{CONNECTOR_PREFIX.rstrip('.')}{node.name}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = renamed(value.name)
