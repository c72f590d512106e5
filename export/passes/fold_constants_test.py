"""Folding does what onnxscript's optimizer does, rule by rule."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer, rewriter

from export.passes.fold_constants import FoldConstants, rules_by_operator

OPERATORS = {"": 20}


def model() -> ir.Model:
    """Products with one, sums with zero, two casts, two transpositions, two reshapes, and a constant to be folded."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 6]))
    arrays: dict[str, np.ndarray] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
        "shape": np.array([3, 4], np.int64),
        "back": np.array([2, 6], np.int64),
        "half": np.full((2, 6), 0.5, np.float32),
    }
    constant = {name: ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    nodes: list[ir.Node] = []

    def add(operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes=attributes))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    rows = add("Mul", constant["one"], add("Mul", x, constant["one"]))
    rows = add("Add", constant["zero"], add("Add", rows, constant["zero"]))
    rows = add("Transpose", add("Transpose", rows, perm=[1, 0]), perm=[1, 0])
    rows = add("Reshape", add("Reshape", rows, constant["shape"]), constant["back"])
    rows = add("Cast", add("Cast", rows, to=ir.DataType.DOUBLE), to=ir.DataType.FLOAT)
    rows = add("Add", rows, add("Sqrt", add("Mul", constant["half"], constant["half"])))
    rows.name, rows.type, rows.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [rows], nodes=nodes, initializers=list(constant.values()), opset_imports=OPERATORS, name="main")
    return ir.Model(graph, ir_version=10)


def test_the_graph_is_that_of_the_optimizer() -> None:
    ours, theirs = model(), model()
    FoldConstants().rewrite(ours)
    optimizer.optimize_ir(theirs)
    assert ir.to_proto(ours).SerializeToString() == ir.to_proto(theirs).SerializeToString()
    kept = [node.op_type for node in ours.graph]
    assert "Add" in kept and not {"Mul", "Sqrt"} & set(kept)


def test_every_rule_of_the_optimizer_and_no_other() -> None:
    """A new version of onnxscript may have more: they are listed then, with the operator that their patterns end in."""
    listed = rules_by_operator()
    default = list(rewriter._DEFAULT_REWRITE_RULES)
    assert len(listed) == len(default)
    for (operator, ours), theirs in zip(listed, default, strict=True):
        last = theirs._target_pattern.output_nodes[0].op_identifier()
        assert last is None or last[:2] == ("", operator)
        assert ours is theirs or last is None or operator in ("Mul", "Add")
