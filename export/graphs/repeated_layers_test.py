"""A deep stage from two shallow traces has the bytes of a whole trace, and layers that differ are traced one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from export.backends.onnx.choices import OnnxChoices, assign
from export.backends.onnx.kernels import KernelChoices, OrtKernels
from export.backends.onnx.operator_set import OPSET
from export.checkpoint.opened import open_folder
from export.graphs import trace
from export.graphs.repeated_layers import deepened, layers_are_alike
from export.graphs.trace import trace_stage
from export.modules.build import layer_shapes
from export.modules.kernels import Kernels
from export.specs import ModelSpec
from runtime_py.contracts import DECODER, VISION

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "minicpm-v"


def with_layers(layers: int) -> ModelSpec:
    spec = open_folder(GOLDEN).spec
    return replace(spec, decoder=replace(spec.decoder, layers=layers), vision=replace(spec.vision, layers=layers))


def packed(spec: ModelSpec) -> Kernels:
    """Those of an int4 package; the first block of its tower is of another kind than the others."""
    chosen = OnnxChoices("int4", "int8", "int8")
    return OrtKernels({layer.name: assign(layer, chosen) for layer in layer_shapes(spec)}, KernelChoices())


@pytest.mark.parametrize("stage", [VISION, DECODER])
def test_the_bytes_are_those_of_a_whole_trace(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, results = with_layers(6), []

    def noted(*given: object) -> object:
        results.append(deepened(*given))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr(trace, "deepened", noted)
    monkeypatch.setattr(trace, "DEEP", 6)
    made = trace_stage(spec, stage, packed(spec), opset=OPSET, readable=True)
    assert results == [made]
    monkeypatch.setattr(trace, "DEEP", 7)
    whole = trace_stage(spec, stage, packed(spec), opset=OPSET, readable=True)
    assert len(results) == 1
    assert made.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


class Stage(nn.Module):
    def __init__(self, widths: list[int], name: Callable[[int], str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, width) for width in widths)
        for number, layer in enumerate(self.layers):
            layer.name = name(number)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(4)


def test_layers_are_alike_in_all_but_their_number() -> None:
    def numbered(number: int) -> str:
        return f"decoder.layers.{number}.mlp"

    assert layers_are_alike(Stage([4] * 5, numbered), 5)
    assert not layers_are_alike(Stage([4] * 5, numbered), 4)
    assert not layers_are_alike(Stage([4, 4, 4, 8, 4], numbered), 5)
    assert not layers_are_alike(Stage([4] * 5, lambda number: f"{numbered(number)} on a grid of {number}"), 5)
    halved = Stage([4] * 5, numbered)
    halved.layers[2].to(torch.float16)
    assert not layers_are_alike(halved, 5)


def chain(numbers: list[int], factors: list[int] | None = None) -> onnx.ModelProto:
    """A value that goes from node to node, called after ``numbers``; each node may have an attribute of its own."""
    names = [f"add_{number}" for number in numbers]
    nodes = [
        helper.make_node("Elu", [before], [after], name=after, alpha=float(factor))
        for before, after, factor in zip(["x", *names], names, factors or [1] * len(names), strict=False)
    ]
    nodes.append(helper.make_node("Neg", [names[-1]], ["y"], name="last"))
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "chain", border[:1], border[1:]))


def test_names_go_on_by_constant_steps() -> None:
    assert deepened(chain([2, 5, 8]), chain([2, 5, 8, 11]), 4) == chain([2, 5, 8, 11, 14, 17, 20])


@pytest.mark.parametrize(
    ("shallow", "deeper"),
    [
        (chain([2, 5, 8]), chain([2, 5, 8, 12])),
        (chain([2, 5, 8]), chain([2, 5, 8])),
        (chain([2, 5, 8], [1, 1, 1]), chain([2, 5, 8, 11], [1, 1, 1, 2])),
        (chain([2, 5, 8, 11]), chain([2, 5, 8])),
    ],
    ids=["steps", "no layer more", "attributes", "fewer"],
)
def test_what_is_not_regular_gives_nothing(shallow: onnx.ModelProto, deeper: onnx.ModelProto) -> None:
    assert deepened(shallow, deeper, 3) is None


def test_everything_else_must_be_equal() -> None:
    other = chain([2, 5, 8, 11])
    other.producer_name = "another"
    assert deepened(chain([2, 5, 8]), other, 3) is None
