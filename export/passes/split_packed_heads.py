"""Cuts packed q | k | v rows with one Split instead of laying all heads out anew.

The modules view (batch, tokens, 3 * width) as (batch, tokens, 3, heads, head_dim), permute the 3 to the front and take
each third; an attention operator that reads (batch, tokens, width) then turns every third back. Matched, per third i:

    Reshape -> Transpose(2, 0, 3, 1, 4) -> Gather(i, axis 0) -> Transpose(0, 2, 1, 3) -> Reshape to 3 axes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.passes.base import GraphPass, Part, replace_nodes
from export.passes.parameters import Parameter

PARTS = 3
HEADS_FIRST, TOKENS_FIRST = (2, 0, 3, 1, 4), (0, 2, 1, 3)


class SplitPackedHeads(GraphPass):
    """Rewrites every such pattern; whatever differs from it in one link is left alone."""

    changes = frozenset({Part.NODES})

    def rewrite(self, model: ir.Model) -> int:
        candidates = [_projection(node) for node in model.graph if _is_transpose(node, HEADS_FIRST)]
        projections = [projection for projection in candidates if projection is not None]
        for projection in projections:
            _cut(model.graph, projection)
        return len(projections)


@dataclass(frozen=True)
class _Third:
    """One chain behind the heads: which third it takes, its nodes in order, and the last one's value."""

    index: int
    nodes: tuple[ir.Node, ...]

    @property
    def value(self) -> ir.Value:
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True)
class _Projection:
    reshape: ir.Node
    transpose: ir.Node
    thirds: tuple[_Third, ...]


def _projection(transpose: ir.Node) -> _Projection | None:
    """The pattern around its first Transpose; None when anything is not as expected."""
    packed = transpose.inputs[0]
    reshape = None if packed is None else packed.producer()
    if reshape is None or reshape.op_type != "Reshape" or _only_reader(reshape) is not transpose:
        return None
    if transpose.outputs[0].is_graph_output():
        return None
    chains = [_third(use.node) for use in transpose.outputs[0].uses()]
    thirds = tuple(sorted((chain for chain in chains if chain is not None), key=lambda third: third.index))
    if len(thirds) != len(chains) or [third.index for third in thirds] != list(range(PARTS)):
        return None
    return _Projection(reshape, transpose, thirds)


def _third(gather: ir.Node) -> _Third | None:
    """The chain that a Gather begins, when every link but the last is read once."""
    turned = _only_reader(gather)
    flattened = None if turned is None or not _is_transpose(turned, TOKENS_FIRST) else _only_reader(turned)
    if gather.op_type != "Gather" or turned is None or flattened is None or flattened.op_type != "Reshape":
        return None
    index, shape = _constant(gather.inputs[1]), _constant(flattened.inputs[1])
    if index is None or shape is None or len(shape) != PARTS:
        return None
    return _Third(int(index) % PARTS, (gather, turned, flattened))


def _cut(graph: ir.Graph, projection: _Projection) -> None:
    attributes = [ir.AttrInt64("axis", -1), ir.AttrInt64("num_outputs", PARTS)]
    name = f"{projection.transpose.name}_split"
    split = ir.Node("", "Split", [projection.reshape.inputs[0]], attributes, num_outputs=PARTS, name=name)
    dead = [projection.reshape, projection.transpose, *(node for third in projection.thirds for node in third.nodes)]
    replace_nodes(graph, dead, split, {third.value: split.outputs[third.index] for third in projection.thirds})


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one node that reads what ``node`` makes; None when there are more, or the graph gives it out."""
    value = node.outputs[0]
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """What an initializer holds; None for a parameter, which has no data yet, and for what is computed."""
    if value is None or not value.is_initializer() or isinstance(value.const_value, Parameter):
        return None
    return None if value.const_value is None else value.const_value.numpy()


def _is_transpose(node: ir.Node, order: tuple[int, ...]) -> bool:
    permutation = node.attributes.get("perm")
    return node.op_type == "Transpose" and permutation is not None and tuple(permutation.as_ints()) == order
