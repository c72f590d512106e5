"""TensorRT's passes on small graphs; families_test and engine_test hold them on whole ones."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import TensorProto

from export.backends.tensorrt.graph_passes import FixCapacity, PackedCodes, RenameNodes, graph_passes
from export.passes.base import apply
from export.passes.parameters import Parameter
from runtime_py.contracts import DECODER, EMBED

GRAPH = """
<ir_version: 10, opset_import: ["" : 24]>
agraph (float[batch, 2, past, 4] past, float[batch, n] x) => (float[batch, 2, total, 4] present, float[batch, n] y)
{
    present = Relu (past)
    y = Relu (x)
}
"""


def model() -> ir.Model:
    parsed = ir.from_onnx_text(GRAPH)
    parsed.graph.inputs[0].name, parsed.graph.outputs[0].name = "past_key_values.0.key", "present.0.key"
    for node in parsed.graph:
        node.name = "node_relu_1"
    codes = Parameter("head.weight_codes", ir.DataType.INT8, (6, 8))
    parsed.graph.register_initializer(ir.Value(name=codes.name, const_value=codes))
    return parsed


def test_the_passes_of_a_decoder() -> None:
    decoder = model()
    apply(decoder, graph_passes(DECODER, 32))
    assert [str(value.shape) for value in (*decoder.graph.inputs, *decoder.graph.outputs)] == [
        "[batch,2,32,4]",
        "[batch,n]",
        "[batch,2,32,4]",
        "[batch,n]",
    ]
    assert [node.name for node in decoder.graph] == ["00000.Relu", "00001.Relu"]
    (codes,) = ir.to_proto(decoder).graph.initializer
    assert (codes.name, codes.data_type, list(codes.dims)) == ("head.weight_codes", TensorProto.INT4, [6, 16])
    assert not codes.HasField("raw_data")


def test_other_stages_have_no_cache_to_fix() -> None:
    assert [str(one) for one in graph_passes(EMBED, 32)] == ["RenameNodes", "PackedCodes"]
    assert not FixCapacity(32)(ir.from_onnx_text(GRAPH)).modified
    assert not PackedCodes()(ir.from_onnx_text(GRAPH)).modified


def test_names_that_the_parser_makes_up_are_refused() -> None:
    class Careless(RenameNodes):
        def rewrite(self, model: ir.Model) -> int:
            for node in model.graph:
                node.name = f"{node.op_type}_1"
            return len(model.graph)

    with pytest.raises(ir.passes.PostconditionError, match="names that the parser may make up"):
        Careless()(model())
