"""How many of the last tokens get logits, as an input that other tools know.

The modules take ``logit_positions``, any list of tokens. Tools of the field (transformers.js, onnxruntime-genai) pass
``num_logits_to_keep`` instead: 0 for every token, else how many of the last. Matched around the input:

    Transpose -> GatherND(Unsqueeze(logit_positions)) -> Transpose      or      Gather(logit_positions, axis 1)

and replaced by one Slice from ``-num_logits_to_keep`` on, which for 0 is the whole axis.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.passes.base import GraphPass, Part, replace_nodes
from runtime_py.backends.logit_rows import COUNT, POSITIONS


class KeepLastLogits(GraphPass):
    """Puts the input ``num_logits_to_keep``, int64 (), in the place of ``logit_positions``."""

    changes = frozenset({Part.NODES, Part.BORDER, Part.INITIALIZERS})

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError when the graph does not choose its rows as described above."""
        if _chosen(model.graph) is None:
            raise ir.passes.PreconditionError(f"{self}: nothing in the graph takes rows by {POSITIONS}")

    def rewrite(self, model: ir.Model) -> int:
        graph = model.graph
        chosen = _chosen(graph)
        assert chosen is not None
        nodes, rows, kept = chosen
        place = next(index for index, value in enumerate(graph.inputs) if value.name == POSITIONS)
        count = ir.Value(name=COUNT, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        ends, axes, flat = (
            _constant(graph, name, number)
            for name, number in (("logits_end", np.iinfo(np.int64).max), ("logits_axis", 1), ("logits_flat", -1))
        )
        negative = ir.Node("", "Neg", [count], name="/logits/Neg")
        start = ir.Node("", "Reshape", [negative.outputs[0], flat], name="/logits/Reshape")
        last = ir.Node("", "Slice", [rows, start.outputs[0], ends, axes], name="/logits/Slice")
        for node, name, shape in ((negative, "logits_negative", []), (start, "logits_start", [1])):
            node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.INT64)
            node.outputs[0].shape = ir.Shape(shape)
        graph.insert_before(nodes[0], [negative, start])
        replace_nodes(graph, nodes, last, {kept: last.outputs[0]})
        graph.inputs[place] = count
        return 1

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError unless the one input is there and the other is not."""
        super().ensures(model)
        names = [value.name for value in model.graph.inputs]
        if COUNT not in names or POSITIONS in names:
            raise ir.passes.PostconditionError(f"{self}: the graph's inputs are {', '.join(map(str, names))}")


Chosen = tuple[list[ir.Node], ir.Value, ir.Value]
"""The nodes that take rows by position, what they take them from, and what they make."""


def _chosen(graph: ir.Graph) -> Chosen | None:
    """The pattern behind the input; None when anything is not as expected."""
    positions = next((value for value in graph.inputs if value.name == POSITIONS), None)
    reader = None if positions is None else _only_reader(positions)
    if reader is None:
        return None
    if reader.op_type == "Gather" and "axis" in reader.attributes and reader.attributes["axis"].as_int() == 1:
        return [reader], _value(reader.inputs[0]), reader.outputs[0]
    gather = _only_reader(reader.outputs[0]) if reader.op_type == "Unsqueeze" else None
    if gather is None or gather.op_type != "GatherND" or gather.inputs[1] is not reader.outputs[0]:
        return None
    before, after = _value(gather.inputs[0]).producer(), _only_reader(gather.outputs[0])
    if before is None or after is None or not (_swaps(before) and _swaps(after)):
        return None
    return _in_order(graph, [before, reader, gather, after]), _value(before.inputs[0]), after.outputs[0]


def _in_order(graph: ir.Graph, nodes: list[ir.Node]) -> list[ir.Node]:
    """``nodes`` in the graph's order."""
    return [node for node in graph if node in nodes]


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _value(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _swaps(node: ir.Node) -> bool:
    """Whether a node exchanges the first two axes of three."""
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and order is not None and tuple(order.as_ints()) == (1, 0, 2)


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    value.const_value = ir.tensor(np.array([number], np.int64), name=name)
    graph.register_initializer(value)
    return value
