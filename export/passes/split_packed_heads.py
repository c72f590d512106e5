"""Cuts packed q | k | v rows with one Split instead of laying all heads out anew.

The modules view (batch, tokens, 3 * width) as (batch, tokens, 3, heads, head_dim), permute the 3 to the front and take
each third; an attention operator that reads (batch, tokens, width) then turns every third back. Matched, per third i:

    Reshape -> Transpose(2, 0, 3, 1, 4) -> Gather(i, axis 0) -> Transpose(0, 2, 1, 3) -> Reshape to 3 axes
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

PARTS = 3


def split_packed_heads(model: onnx.ModelProto) -> int:
    """Rewrite every such pattern of ``model`` in place; return how many projections were cut."""
    matcher = _Graph(model.graph)
    found = 0
    for node in list(model.graph.node):
        if _is_transpose(node, [2, 0, 3, 1, 4]):
            found += matcher.rewrite(node)
    matcher.store()
    return found


class _Graph:
    """Producers, readers and constants of a graph while it is rewritten."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes = list(graph.node)
        self.constants = {t.name: t for t in graph.initializer if t.HasField("raw_data")}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.outputs = {value.name for value in graph.output}

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def rewrite(self, transpose: onnx.NodeProto) -> int:
        """Cut the projection in front of ``transpose``; 0 when anything around it is not as expected."""
        reshape = self.producers.get(transpose.input[0])
        if reshape is None or reshape.op_type != "Reshape":
            return 0
        ends = [self._third(gather) for gather in self.readers(transpose.output[0])]
        thirds = [end for end in ends if end is not None]
        if len(thirds) != len(ends) or sorted(index for index, _ in thirds) != list(range(PARTS)):
            return 0
        names = {index: node.output[0] for index, node in thirds}
        split = helper.make_node(
            "Split",
            [reshape.input[0]],
            [names[index] for index in range(PARTS)],
            name=f"{transpose.name}_split",
            axis=-1,
            num_outputs=PARTS,
        )
        self.nodes[self._index(reshape)] = split
        for index, node in thirds:
            inner = self.producers[node.input[0]]
            for dead in (self.producers[inner.input[0]], inner, node):
                del self.nodes[self._index(dead)]
            self.producers[names[index]] = split
        del self.nodes[self._index(transpose)]
        return 1

    def _third(self, gather: onnx.NodeProto) -> tuple[int, onnx.NodeProto] | None:
        """Which third a Gather takes, and the Reshape that ends its chain, when every link is read once."""
        index = self.constants.get(gather.input[1]) if gather.op_type == "Gather" else None
        node = gather
        for wanted in ("Transpose", "Reshape"):
            readers = self.readers(node.output[0])
            if len(readers) != 1 or readers[0].op_type != wanted or node.output[0] in self.outputs:
                return None
            node = readers[0]
            if wanted == "Transpose" and not _is_transpose(node, [0, 2, 1, 3]):
                return None
        shape = self.constants.get(node.input[1])
        if index is None or shape is None or len(numpy_helper.to_array(shape)) != PARTS:
            return None
        return int(numpy_helper.to_array(index)) % PARTS, node

    def _index(self, node: onnx.NodeProto) -> int:
        return next(i for i, other in enumerate(self.nodes) if other is node)

    def store(self) -> None:
        """Put the nodes back into the graph."""
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)


def _is_transpose(node: onnx.NodeProto, order: list[int]) -> bool:
    if node.op_type != "Transpose":
        return False
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), []) == order
