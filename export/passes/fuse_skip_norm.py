"""Joins ``Add`` and the RMS norm of its sum into SkipSimplifiedLayerNormalization, which reads the residual stream once.

The sum stays a value of the graph under its own name: the residual stream, and so every block's output, keeps its name.
Operator: onnxruntime docs/ContribOperators.md.
"""

from __future__ import annotations

import onnx_ir as ir

from export.passes.base import GraphPass, Part, replace_nodes

NORM, FUSED, DOMAIN = "RMSNormalization", "SkipSimplifiedLayerNormalization", "com.microsoft"


class FuseSkipNorm(GraphPass):
    """Fuses every such pair, but sums of which one term is an initializer: a bias, not a residual stream."""

    changes = frozenset({Part.NODES, Part.OPERATOR_SETS})

    def rewrite(self, model: ir.Model) -> int:
        pairs = [(node, _norm_of(node)) for node in model.graph if _adds_two_streams(node)]
        fused = [_fuse(model.graph, add, norm) for add, norm in pairs if norm is not None]
        if fused:
            model.graph.opset_imports.setdefault(DOMAIN, 1)
        return len(fused)


def _adds_two_streams(node: ir.Node) -> bool:
    return node.op_type == "Add" and not any(value is not None and value.is_initializer() for value in node.inputs)


def _norm_of(add: ir.Node) -> ir.Node | None:
    """The norm that reads the sum as what it scales."""
    uses = add.outputs[0].uses()
    return next((use.node for use in uses if use.node.op_type == NORM and use.idx == 0), None)


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> ir.Node:
    """Put the operator where the sum was made, since others read the sum."""
    epsilon = ir.AttrFloat32("epsilon", norm.attributes["epsilon"].as_float())
    both = ir.Node(DOMAIN, FUSED, [*add.inputs, norm.inputs[1]], [epsilon], num_outputs=4, name=norm.name)
    normed, mean, deviation, total = both.outputs
    mean.name = deviation.name = ""  # outputs that are left out
    replace_nodes(graph, [add, norm], both, {norm.outputs[0]: normed, add.outputs[0]: total})
    return both
