"""How rows are gathered by indices of tokens and put back: nothing where all tokens of a call are text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from tvm import relax

from export.backends.onnx.decoder_library.adapter_operators import Behind, Spread, joined
from export.backends.onnx.decoder_library.nodes import attribute, operator, refused
from export.backends.onnx.decoder_library.translation import ROWS, Translation
from export.backends.onnx.decoder_library.values import Nobody, Sizes, Tokens, Turned, Value, Zeros

TURN = [1, 0, 2]
"""From (sequences, tokens, channels) to tokens first, and back."""


@operator("Transpose")
def turn(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    value = given[0]
    if attribute(node, "perm") != TURN:
        raise refused(node, "turns other axes than those of tokens")
    if isinstance(value, Zeros):
        return value
    return value.value if isinstance(value, Turned) else Turned(value)


@operator("GatherND")
def routed(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    """The rows of some tokens."""
    value, tokens = given
    if isinstance(value, Zeros) or isinstance(tokens, Nobody):
        return value if isinstance(value, Zeros) else tokens
    if not isinstance(value, Turned) or not isinstance(tokens, Tokens):
        raise refused(node, "takes something else than the rows of tokens")
    if tokens.index is None:
        return value
    if isinstance(value.value, Behind):
        return Turned(Spread(value.value.rows, tokens.index))
    taken = relax.op.take(decoder.rows_of(value.value), tokens.index, axis=0, mode="clip")
    return Turned(decoder.emit(taken))


@operator("Shape")
def sizes(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    return Sizes()


@operator("ConstantOfShape")
def zeros(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    value = attribute(node, "value")
    if value is not None and np.any(numpy_helper.to_array(value)):
        raise refused(node, "is not zero")
    return Zeros()


@operator("Concat")
def concat(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    if any(isinstance(value, Sizes) for value in given):
        return Sizes()
    made = joined(node, given)
    if made is not None:
        return made
    there = [value for value in given if not isinstance(value, Nobody)]
    if len(there) <= 1:
        return there[0] if there else Nobody()
    tensors = [decoder.tensor(value) for value in there]
    axis = attribute(node, "axis")
    if axis == 1 and all(len(tensor.ty.shape) == ROWS for tensor in tensors):
        axis = 0  # tokens, which are the first of two axes here
    return decoder.emit(relax.op.concat(tensors, axis))
