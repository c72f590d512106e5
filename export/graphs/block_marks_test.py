"""Markers go, the values they marked are called after their blocks, and the graph computes what it did."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from export.graphs.block_marks import DOMAIN, ResolveMarks
from export.passes.base import apply

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "edgeproof.marks" : 1]>
agraph (float[2] x) => (float[2] out)
{
    entered = edgeproof.marks.BlockOutput <block: string = "layers.input"> (x)
    sum = Add (entered, x)
    once = edgeproof.marks.BlockOutput <block: string = "layers.0"> (sum)
    twice = edgeproof.marks.BlockOutput <block: string = "tower"> (once)
    low = Neg (once)
    product = Mul (low, twice)
    out = edgeproof.marks.BlockOutput <block: string = "norm"> (product)
}
"""


def test_marks_are_taken_out() -> None:
    model = ir.from_onnx_text(GRAPH)
    apply(model, [ResolveMarks()])
    assert DOMAIN not in model.graph.opset_imports
    written = ir.to_proto(model).graph
    assert [(node.op_type, list(node.input), list(node.output)) for node in written.node] == [
        ("Add", ["x", "x"], ["layers.0.output"]),
        ("Identity", ["layers.0.output"], ["tower.output"]),
        ("Neg", ["layers.0.output"], ["low"]),
        ("Mul", ["low", "tower.output"], ["norm.output"]),
        ("Identity", ["norm.output"], ["out"]),
    ]
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.array([1, 2], np.float32)})[0], [-4, -16])


def test_one_value_under_two_names_is_refused() -> None:
    model = ir.from_onnx_text(GRAPH.replace('"norm"', '"layers.0"'))
    with pytest.raises(ir.passes.PassError) as caught:
        apply(model, [ResolveMarks()])
    assert "two values are called layers.0.output" in str(caught.value.__cause__)
