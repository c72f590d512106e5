"""A chain written with more layers is the traced circuit, or it is not."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import TensorProto, helper

from export.graphs.unrolled import Layers, is_unrolled

LENGTH = 2


def chain(layers: int, reads: Sequence[tuple[int, str]] = ()) -> onnx.GraphProto:
    """``first``, then of every layer an addition of its own number and of ``first``, then ``last``.

    Args:
        reads: places of nodes whose first input is another value.
    """
    nodes = [helper.make_node("Neg", ["x"], ["first"])]
    before = "first"
    for number in range(layers):
        nodes.append(helper.make_node("Mul", [before, f"weight_{number}"], [f"mul_{number}"]))
        nodes.append(helper.make_node("Add", [f"mul_{number}", "first"], [f"add_{number}"]))
        before = f"add_{number}"
    nodes.append(helper.make_node("Neg", [before], ["y"]))
    for place, name in reads:
        nodes[place].input[0] = name
    weights = [helper.make_tensor(f"weight_{number}", TensorProto.FLOAT, [1], [1.0]) for number in range(layers)]
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    return helper.make_graph(nodes, "chain", border[:1], border[1:], weights)


def layers(further: int) -> Layers:
    """The second of the layers and those behind it."""
    return Layers(1 + LENGTH, LENGTH, further)


def test_more_layers_of_the_same_kind() -> None:
    assert layers(3).stop == 1 + 5 * LENGTH
    assert is_unrolled(chain(3), chain(3), layers(1))
    assert is_unrolled(chain(3), chain(5), layers(3))


@pytest.mark.parametrize(
    "reads",
    [
        [(9, "add_1")],
        [(9, "first")],
        [(8, "add_2")],
        [(11, "add_3")],
        [(2, "x")],
        [(9, "weight_9")],
        [(9, "add_4")],
    ],
    ids=["two layers back", "none", "another place", "the last but one", "before the layers", "no such weight", "itself"],
)
def test_a_node_that_reads_something_else(reads: Sequence[tuple[int, str]]) -> None:
    assert not is_unrolled(chain(3), chain(5, reads), layers(3))


def test_a_value_that_should_be_the_layers_own() -> None:
    assert not is_unrolled(chain(3, [(6, "mul_1")]), chain(5, [(6, "mul_1"), (8, "mul_1"), (10, "mul_1")]), layers(3))


def test_too_few_layers_and_an_output_that_nothing_makes() -> None:
    assert not is_unrolled(chain(3), chain(4), layers(3))
    lost = chain(5)
    lost.output[0].name = "z"
    assert not is_unrolled(chain(3), lost, layers(3))
