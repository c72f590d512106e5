"""Joins ``Add`` and the RMS norm of its sum into SkipSimplifiedLayerNormalization, which reads the residual stream once.

The sum stays a value of the graph under its own name: the residual stream, and so every block's output, keeps its name.
Operator: onnxruntime docs/ContribOperators.md.
"""

from __future__ import annotations

from collections import defaultdict

import onnx
from onnx import helper

NORM, FUSED, DOMAIN = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "com.microsoft"


def fuse_skip_norm(model: onnx.ModelProto) -> int:
    """Fuse every such pair of ``model`` in place; return how many there were."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    fused: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for node in graph.node:
        norm = next((r for r in readers[node.output[0]] if r.op_type == NORM and r.input[0] == node.output[0]), None)
        if node.op_type != "Add" or norm is None or constants & set(node.input):
            continue
        epsilon = next(attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
        outputs = [norm.output[0], "", "", node.output[0]]
        fused[node.output[0]] = helper.make_node(
            FUSED, [*node.input, norm.input[1]], outputs, name=norm.name, domain=DOMAIN, epsilon=epsilon
        )
        gone.add(norm.output[0])
    if fused and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    kept = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    del graph.node[:]
    graph.node.extend(kept)
    return len(fused)
