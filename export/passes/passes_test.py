"""Each pass: what it rewrites gives the same numbers, what it must leave alone stays, names are kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from export.passes.base import GraphPass, apply
from export.passes.fuse_skip_norm import FuseSkipNorm
from export.passes.keep_last_logits import KeepLastLogits
from export.passes.name_axes import RenameAxes
from export.passes.name_nodes import SCOPES, NameNodes
from export.passes.split_packed_heads import SplitPackedHeads

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 24)).astype(np.float32)
Y = RNG.standard_normal((2, 5, 24)).astype(np.float32)

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
agraph (float[b,t,24] x, float[b,t,24] y) => (float[b,t,24] normed, float[b,t,24] last) {
    stream = Add (x, y)
    normed = RMSNormalization <axis: int = -1, epsilon: float = 0.01, stash_type: int = 1> (stream, w)
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
    assert "RMSNormalization" in kinds(model)


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


CHOSEN = """
<ir_version: 10, opset_import: ["" : 23]>
agraph (float[b,t,24] x, int64[outputs] logit_positions) => (float[b,outputs,24] y) {
    turned = Transpose <perm: ints = [1, 0, 2]> (x)
    named = Unsqueeze (logit_positions, minus)
    taken = GatherND (turned, named)
    rows = Transpose <perm: ints = [1, 0, 2]> (taken)
    y = Neg (rows)
}
"""


def test_the_last_tokens_are_counted_where_positions_were_named() -> None:
    named = graph(CHOSEN, {"minus": np.array([-1], np.int64)})
    counted = after(named, KeepLastLogits())
    assert [value.name for value in counted.graph.input] == ["x", "num_logits_to_keep"]
    assert kinds(counted) == ["Neg", "Neg", "Reshape", "Slice"]
    for kept, positions in ((1, [-1]), (2, [3, 4]), (5, range(5)), (0, range(5))):
        wanted = run(named, x=X, logit_positions=np.array(list(positions)))[0]
        for shape in ((), (1,)):  # transformers.js passes a scalar, onnxruntime-genai one number in a row
            given = np.full(shape, kept, np.int64)
            np.testing.assert_array_equal(run(counted, x=X, num_logits_to_keep=given)[0], wanted)


def test_rows_that_are_chosen_otherwise_are_no_silent_success() -> None:
    model = graph(CHOSEN, {"minus": np.array([-1], np.int64)})
    model.graph.node[3].attribute[0].ints[:] = [0, 1, 2]
    with pytest.raises(ir.passes.PassError) as caught:
        after(model, KeepLastLogits())
    assert "takes rows by logit_positions" in str(caught.value.__cause__)


def test_nodes_are_named_after_their_modules() -> None:
    model = residual()
    scopes = (["", "module", "module.layers.0", "add"], ["", "module", "module.layers.0", "module.rotary", "norm"], None)
    for node, scope in zip(model.graph.node, scopes, strict=True):
        if scope is not None:
            node.metadata_props.add(key=SCOPES, value=str(scope))
    named = after(model, NameNodes("module."))
    wanted = ["/layers.0/Add", "/layers.0/rotary/RMSNormalization", "/layers.0/Add_1"]
    assert [node.name for node in named.graph.node] == wanted


def test_axes_get_other_names_inside_too() -> None:
    renamed = after(residual(), RenameAxes({"t": "sequence_length", "b": "batch_size"}))
    for value in (*renamed.graph.input, *renamed.graph.output):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert axes == ["batch_size", "sequence_length", 24]
