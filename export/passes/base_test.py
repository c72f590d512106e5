"""A pass is held to what it declares, and a failure names the passes that ran before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from export.passes.base import GraphPass, Part, apply
from export.passes.clear_notes import ClearNotes
from export.passes.fold_constants import FoldConstants
from export.passes.name_axes import NameAxes
from export.passes.parameters import DeclareParameters, HideParameters, Parameter
from runtime_py.contracts import StageContract, TensorContract

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
agraph (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 2, 3, 4}>
{
    sum = Add (x, w)
    y = Relu (sum)
}
"""


def chain() -> ir.Model:
    """Two nodes; the first one's value is called as a block's output is."""
    model = ir.from_onnx_text(CHAIN)
    first(model).outputs[0].name = "block.output"
    return model


def first(model: ir.Model) -> ir.Node:
    return next(iter(model.graph))


def rename_a_node(model: ir.Model) -> None:
    first(model).name = "other"


def change_an_operator(model: ir.Model) -> None:
    first(model).op_type = "Mul"


def set_an_attribute(model: ir.Model) -> None:
    first(model).attributes["axis"] = ir.AttrInt64("axis", 1)


def rename_a_block(model: ir.Model) -> None:
    first(model).outputs[0].name = "block.result"


def change_an_initializer(model: ir.Model) -> None:
    model.graph.initializers["w"].const_value = ir.tensor(np.zeros(4, np.float32), name="w")


def rename_an_axis(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["m", 4])


def import_operators(model: ir.Model) -> None:
    model.graph.opset_imports["com.microsoft"] = 1


def write_a_remark(model: ir.Model) -> None:
    first(model).doc_string = "seen"


CHANGES: dict[Callable[[ir.Model], None], frozenset[Part]] = {
    rename_a_node: frozenset({Part.NODE_NAMES}),
    change_an_operator: frozenset({Part.NODES}),
    set_an_attribute: frozenset({Part.NODES}),
    rename_a_block: frozenset({Part.NODES, Part.BLOCK_NAMES}),
    change_an_initializer: frozenset({Part.INITIALIZERS}),
    rename_an_axis: frozenset({Part.BORDER}),
    import_operators: frozenset({Part.OPERATOR_SETS}),
    write_a_remark: frozenset({Part.NOTES}),
}


def declared(change: Callable[[ir.Model], None], parts: frozenset[Part], places: int = 1) -> GraphPass:
    """A pass that does one of the changes above and declares ``parts``."""

    class Declared(GraphPass):
        changes = parts

        def rewrite(self, model: ir.Model) -> int:
            change(model)
            return places

    return Declared()


@pytest.mark.parametrize("change", CHANGES)
def test_every_part_of_a_change_must_be_declared(change: Callable[[ir.Model], None]) -> None:
    parts = CHANGES[change]
    assert declared(change, parts)(chain()).modified
    for hidden in parts:
        others = frozenset(Part) - {hidden} - ({Part.NODES} if hidden is Part.NODE_NAMES else set())
        with pytest.raises(ir.passes.PassError, match=f"it also changed .*{hidden}"):
            declared(change, others)(chain())
    with pytest.raises(ir.passes.PassError, match="says that it changed nothing"):
        declared(change, parts, places=0)(chain())


def test_a_node_may_be_renamed_by_who_may_change_nodes() -> None:
    assert declared(rename_a_node, frozenset({Part.NODES}))(chain()).modified


def test_a_graph_that_reads_what_nothing_makes_is_refused() -> None:
    def lose_a_value(model: ir.Model) -> None:
        model.graph.initializers.pop("w")

    with pytest.raises(ir.passes.PostconditionError, match="reads w, which nothing before it makes"):
        declared(lose_a_value, frozenset(Part))(chain())


def test_two_values_of_one_name_are_refused() -> None:
    def name_twice(model: ir.Model) -> None:
        first(model).outputs[0].name = "x"

    with pytest.raises(ir.passes.PostconditionError, match="two values are called x"):
        declared(name_twice, frozenset(Part))(chain())


def test_a_failure_names_the_passes_before_it() -> None:
    with pytest.raises(ir.passes.PassError, match=r"'NameAxes' pass after the following passes: \['ClearNotes'\]") as caught:
        apply(chain(), [ClearNotes(), NameAxes(StageContract("s", (TensorContract("z", "float32", ("n", 4)),), ()))])
    assert caught.value.__cause__ is not None


def test_an_axis_that_was_traced_as_a_number_is_refused() -> None:
    contract = StageContract(
        "s", (TensorContract("x", "float32", ("n", "width")),), (TensorContract("y", "float32", ("n", 4)),)
    )
    with pytest.raises(ir.passes.PreconditionError, match="axis 'width' of 'x' was traced as 4"):
        NameAxes(contract)(chain())


def test_parameters_go_out_of_the_way_and_come_back_without_data() -> None:
    model = chain()
    model.graph.initializers["w"].name = "module.w"
    unread = ir.tensor(np.zeros(3, np.float32))
    value = ir.Value(name="module.unread", const_value=unread, shape=ir.Shape([3]), type=ir.TensorType(unread.dtype))
    model.graph.initializers.add(value)
    apply(model, [HideParameters("module."), FoldConstants(), DeclareParameters(1)])
    assert list(model.graph.initializers) == ["w"]
    written = ir.to_proto(model).graph.initializer
    assert [(tensor.name, list(tensor.dims), tensor.HasField("raw_data")) for tensor in written] == [("w", [4], False)]
    with pytest.raises(ValueError, match="no data before the graph is written"):
        Parameter("w", ir.DataType.FLOAT, (4,)).numpy()
