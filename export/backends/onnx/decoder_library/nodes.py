"""Nodes of a decoder's graph: what is read of one, what an operator translates, and how one that is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from export.backends.onnx.decoder_library.values import Mask, Nobody, Parameter, RequestValue, Value
from runtime_py.errors import UnsupportedModelError

if TYPE_CHECKING:
    from export.backends.onnx.decoder_library.translation import Translation

ATTENTION = "GroupQueryAttention"
HANDED_ON: dict[type, tuple[str, ...]] = {Mask: (ATTENTION,), Nobody: ("Concat", "GatherND")}
"""Values of which every operator makes the same again, but for those that are named."""

ELEMENTS: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT64: "int64",
}

Operator = Callable[["Translation", onnx.NodeProto, list[Value]], Any]
OPERATORS: dict[str, Operator] = {}
REQUEST_OPERATORS: dict[str, Operator] = {}
"""The same of what is worked out of a request alone."""


def operator(name: str) -> Callable[[Operator], Operator]:
    """The function below translates nodes of this type."""

    def kept(function: Operator) -> Operator:
        OPERATORS[name] = function
        return function

    return kept


def refused(node: onnx.NodeProto, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"no decoder library: {node.op_type} '{node.name or node.output[0]}' {why}",
        "a decoder of int4 layers as an export of a family writes it",
        "export without --decoder-library",
    )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def folded(node: onnx.NodeProto, given: list[Any]) -> list[Value]:
    """The constants that a node makes of constants."""
    opset = [onnx.helper.make_opsetid(node.domain, 23 if not node.domain else 1)]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.input if name]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constants", inputs, outputs)
    feeds = {name: value for name, value in zip(node.input, given, strict=True) if name}
    return list(ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opset)).run(None, feeds))


def known_from_request(given: list[Value]) -> bool:
    """Whether these are what a request gives, constants and weights alone."""
    known = all(value is None or isinstance(value, RequestValue | np.ndarray | Parameter) for value in given)
    return known and any(isinstance(value, RequestValue) for value in given)


def read_of_all_tokens(graph: onnx.GraphProto) -> set[str]:
    """Names of which more than the last token is read where that token alone gets logits: all that attention is made of."""
    whole: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == ATTENTION or whole.intersection(node.output):
            whole.update(name for name in node.input if name)
    return whole
