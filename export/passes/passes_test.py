"""Each pass: what it rewrites gives the same numbers, what it must leave alone stays, names are kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.passes.base import GraphPass, apply
from export.passes.default_input import DefaultInput
from export.passes.fuse_skip_norm import FuseSkipNorm
from export.passes.split_packed_heads import SplitPackedHeads

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 24)).astype(np.float32)
Y = RNG.standard_normal((2, 5, 24)).astype(np.float32)

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
agraph (float[b,t,24] x, float[b,t,24] y) => (float[b,t,24] normed, float[b,t,24] last) {
    stream = Add (x, y)
    normed = SimplifiedLayerNormalization <axis: int = -1, epsilon: float = 0.01, stash_type: int = 1> (stream, w)
    last = Add (stream, normed)
}
"""

PACKED = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
agraph (float[b,t,24] x) => (float[b,t,8] q, float[b,t,8] v, float[b,t,8] k) {
    five = Constant <value_ints: ints = [2, 5, 3, 2, 4]> ()
    viewed = Reshape (x, five)
    thirds = Transpose <perm: ints = [2, 0, 3, 1, 4]> (viewed)
    q4 = Gather <axis: int = 0> (thirds, zero)
    k4 = Gather <axis: int = 0> (thirds, one)
    v4 = Gather <axis: int = 0> (thirds, two)
    qt = Transpose <perm: ints = [0, 2, 1, 3]> (q4)
    kt = Transpose <perm: ints = [0, 2, 1, 3]> (k4)
    vt = Transpose <perm: ints = [0, 2, 1, 3]> (v4)
    v = Reshape (vt, three)
    q = Reshape (qt, three)
    k = Reshape (kt, three)
}
"""


def graph(text: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph from its text form, with initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def after(model: onnx.ModelProto, *passes: GraphPass) -> onnx.ModelProto:
    """The model as the passes leave it; the model given stays."""
    working = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    apply(working, passes)
    return ir.to_proto(working)


def residual() -> onnx.ModelProto:
    return graph(RESIDUAL, {"w": RNG.standard_normal(24).astype(np.float32)})


def packed() -> onnx.ModelProto:
    indices = {name: np.array(i, np.int64) for i, name in enumerate(("zero", "one", "two"))}
    return graph(PACKED, {**indices, "three": np.array([2, 5, 8], np.int64)})


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def kinds(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node)


def test_skip_norm_keeps_numbers_and_the_name_of_the_sum() -> None:
    model = residual()
    before = run(model, x=X, y=Y)
    model = after(model, FuseSkipNorm())
    assert kinds(model) == ["Add", "SkipSimplifiedLayerNormalization"]
    assert "stream" in model.graph.node[0].output
    for actual, wanted in zip(run(model, x=X, y=Y), before, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-6)


def test_skip_norm_leaves_an_added_constant_alone() -> None:
    model = residual()
    model.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal(24).astype(np.float32), "bias"))
    model.graph.node[0].input[1] = "bias"
    assert kinds(after(model, FuseSkipNorm())) == kinds(model)
    assert "SimplifiedLayerNormalization" in kinds(model)


def test_packed_heads_are_cut_in_order() -> None:
    model = packed()
    before = run(model, x=X)
    model = after(model, SplitPackedHeads())
    assert "Transpose" not in kinds(model) and "Gather" not in kinds(model) and "Split" in kinds(model)
    for actual, wanted in zip(run(model, x=X), before, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(
    "spoiled", ["two readers", "a graph output", "heads read elsewhere", "another order", "a missing third"]
)
def test_packed_heads_leaves_other_shapes_alone(spoiled: str) -> None:
    model = packed()
    if spoiled == "two readers":
        model.graph.node.append(helper.make_node("Identity", ["k4"], ["more"]))
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    elif spoiled == "a graph output":
        model.graph.output.append(helper.make_tensor_value_info("kt", TensorProto.FLOAT, None))
    elif spoiled == "heads read elsewhere":
        model.graph.node.append(helper.make_node("Identity", ["viewed"], ["more"]))
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))
    elif spoiled == "another order":
        node = next(node for node in model.graph.node if node.output[0] == "vt")
        node.attribute[0].ints[:] = [0, 1, 2, 3]
        node = next(node for node in model.graph.node if node.output[0] == "v")
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 5, 8], np.int64), "other"))
        node.input[1] = "other"
    else:
        kept = [node for node in model.graph.node if node.output[0] not in {"v4", "vt", "v"}]
        del model.graph.node[:], model.graph.output[1]
        model.graph.node.extend(kept)
    assert kinds(after(model, SplitPackedHeads())) == kinds(model)
    for actual, wanted in zip(run(after(model, SplitPackedHeads()), x=X), run(model, x=X), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_default_input_may_be_left_out_or_given() -> None:
    model = residual()
    filled = after(model, DefaultInput("y", Y))
    np.testing.assert_array_equal(run(filled, x=X)[0], run(model, x=X, y=Y)[0])
    assert np.abs(run(filled, x=X, y=X)[0] - run(filled, x=X)[0]).max() > 0.1
    with pytest.raises(ir.passes.PassError) as caught:
        after(model, DefaultInput("z", Y))
    assert "no input z" in str(caught.value.__cause__)
