"""What is worked out of a request alone, the same for all of its tokens: which experts its adapters are, and how much.

These are a few numbers a layer. Casts to float16 round here, which decides between experts that are nearly alike; elsewhere
a library has no float16 between its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from tvm import relax

from export.backends.onnx.decoder_library.nodes import ELEMENTS, REQUEST_OPERATORS, Operator, attribute, refused
from export.backends.onnx.decoder_library.translation import Translation
from export.backends.onnx.decoder_library.values import RequestValue, Value

Operation = Callable[[Translation, onnx.NodeProto, list[Any], list[Any]], relax.Expr]
OPERATIONS: dict[str, Operation] = {
    "Cast": lambda _, node, given, constants: relax.op.astype(given[0], ELEMENTS[attribute(node, "to")]),
    "Softmax": lambda _, node, given, constants: relax.op.nn.softmax(given[0], attribute(node, "axis", -1)),
    "ArgMax": lambda _, node, given, constants: relax.op.argmax(
        given[0], attribute(node, "axis"), bool(attribute(node, "keepdims", 1))
    ),
    "Equal": lambda _, node, given, constants: relax.op.equal(*given),
    "Mul": lambda _, node, given, constants: relax.op.multiply(*given),
    "Sub": lambda _, node, given, constants: relax.op.subtract(*given),
    "Concat": lambda _, node, given, constants: relax.op.concat(given, attribute(node, "axis")),
    "Unsqueeze": lambda _, node, given, constants: relax.op.expand_dims(given[0], numbers(constants[1])),
    "Expand": lambda _, node, given, constants: relax.op.broadcast_to(given[0], numbers(constants[1])),
    "Reshape": lambda _, node, given, constants: relax.op.reshape(given[0], numbers(constants[1])),
}
"""By ONNX operator: the same of Relax, of tensors with the graph's own axes, and of constants as they were given."""


def numbers(constant: np.ndarray) -> list[int]:
    return [int(number) for number in constant.ravel()]


def largest(_: Translation, node: onnx.NodeProto, given: list[Any], constants: list[Any]) -> relax.Expr:
    return relax.op.max(given[0], numbers(constants[1]), bool(attribute(node, "keepdims", 1)))


def gate_norm(decoder: Translation, node: onnx.NodeProto, given: list[Any], constants: list[Any]) -> relax.Expr:
    x, weight = given
    hidden = int(x.ty.shape[1])
    kernel = decoder.kernels.norm(hidden, attribute(node, "epsilon", 1e-5))
    return decoder.call("norm", kernel, [x, weight], decoder.like(x, hidden))


def gate_logits(decoder: Translation, node: onnx.NodeProto, given: list[Any], constants: list[Any]) -> relax.Expr:
    plain = {"transA": 0, "transB": 1, "alpha": 1.0, "beta": 1.0}
    if len(given) != 3 or any(
        attribute(node, name, value if name != "transB" else 0) != value for name, value in plain.items()
    ):
        raise refused(node, "is no product with a turned matrix and a bias")
    experts, hidden = (int(size) for size in given[1].ty.shape)
    return decoder.call("gate_logits", decoder.kernels.gate_logits(hidden, experts), given, decoder.like(given[0], experts))


OPERATIONS |= {"ReduceMax": largest, "RMSNormalization": gate_norm, "Gemm": gate_logits}


def operator_of(operation: Operation) -> Operator:
    """The same of values: tensors in, a `RequestValue` out."""

    def translated(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
        return RequestValue(decoder.emit(operation(decoder, node, [decoder.tensor(value) for value in given], given)))

    return translated


REQUEST_OPERATORS |= {name: operator_of(operation) for name, operation in OPERATIONS.items()}
