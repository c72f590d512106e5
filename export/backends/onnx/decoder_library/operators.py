"""How each operator of a decoder's graph is translated: kernels of their own where time goes, else Relax's operators."""

from __future__ import annotations

import numpy as np
import onnx
from tvm import relax

from export.backends.onnx.decoder_library.adapter_operators import added, unrounded_product, weighted
from export.backends.onnx.decoder_library.kernels import Rows
from export.backends.onnx.decoder_library.nodes import ATTENTION, ELEMENTS, attribute, operator, refused
from export.backends.onnx.decoder_library.translation import Translation
from export.backends.onnx.decoder_library.values import (
    Mask,
    Parameter,
    Part,
    Rotated,
    Scaled,
    Sigmoid,
    Silu,
    Tokens,
    Value,
    Zeros,
    number_of,
    same,
)
from export.backends.onnx.decoder_library.written import EIGHT_BITS
from export.processor.block_product import BlockMatrix
from export.processor.block_product import unsupported as unsupported_matrix
from export.processor.flat_rows import FlatHeads
from export.processor.flat_rows import unsupported as unsupported_heads

ADAPTER = ".lora_"
"""In names of matrices of adapters: their kernels round no inputs, whatever the graph does, and read no channel without
weight.
"""

PLAIN_ATTENTION = {"local_window_size": -1, "softcap": 0.0, "smooth_softmax": 0, "rotary_interleaved": 0}
"""Attributes of GroupQueryAttention that the kernels know nothing of, and what they are where nothing is asked."""


@operator("Identity")
def identity(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    return given[0]


@operator("Cast")
def cast(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    """Floats stay what they are: kernels compute in float32, and round where they store."""
    value, kind = given[0], attribute(node, "to")
    if isinstance(value, relax.Expr) and str(value.ty.dtype).startswith("int"):
        return decoder.emit(relax.op.astype(value, ELEMENTS[kind]))
    return value


@operator("Split")
def split(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> list[Value]:
    value, axis = decoder.tensor(given[0]), attribute(node, "axis", 0)
    if axis != 2 or not isinstance(value, relax.Var):
        raise refused(node, "splits another axis than the last of a tensor")
    total, count = int(value.ty.shape[-1]), len(node.output)
    widths = [int(width) for width in given[1]] if len(given) > 1 else [total // count] * count
    starts = np.cumsum([0, *widths])
    return [Part(value, int(start), width) for start, width in zip(starts, widths, strict=False)]


@operator("Mul")
def multiply(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    one, other = given
    for value, constant in ((one, other), (other, one)):
        number = number_of(constant)
        if number is not None and not isinstance(value, Sigmoid | Silu):
            return Scaled(value.value, value.factor * number) if isinstance(value, Scaled) else Scaled(value, number)
        if isinstance(constant, Sigmoid) and same(constant.value, value):
            return Silu(value)
        if isinstance(value, Silu) and (gated := gate(decoder, value.value, constant)) is not None:
            return gated
    made = weighted(decoder, one, other)
    return decoder.emit(relax.op.multiply(*map(decoder.tensor, given))) if made is None else made


def gate(decoder: Translation, one: Value, other: Value) -> Value | None:
    """silu(first half) times second half of one packed projection, where the two are that."""
    if not (isinstance(one, Part) and isinstance(other, Part) and one.source.same_as(other.source)):
        return None
    width = one.width
    if (one.start, other.start, other.width, int(one.source.ty.shape[-1])) != (0, width, width, 2 * width):
        return None
    out = decoder.like(one.source, width)
    if decoder.entry.kind is Rows.PROMPT and one.source in decoder.products:
        matrix, operands = decoder.products[one.source]
        if decoder.kernels.gates(matrix):
            # nothing reads the product itself any more, so it is dropped
            return decoder.call("gated_product", decoder.kernels.gated_product(matrix), operands, out)
    return decoder.call("gate", decoder.kernels.gate(width), [one.source], out)


@operator("Div")
def divide(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    number = number_of(given[1])
    return decoder.emit(relax.op.divide(*map(decoder.tensor, given))) if number is None else Scaled(given[0], 1 / number)


@operator("Add")
def add(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    summed = [value for value in given if not isinstance(value, Zeros)]
    if len(summed) == 1:
        return summed[0]
    made = added(decoder, node, given)
    return decoder.emit(relax.op.add(*map(decoder.tensor, given))) if made is None else made


@operator("Sigmoid")
def sigmoid(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    return Sigmoid(given[0])


@operator("Cos")
def cosine(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    return decoder.emit(relax.op.cos(decoder.tensor(given[0])))


@operator("Sin")
def sine(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    return decoder.emit(relax.op.sin(decoder.tensor(given[0])))


@operator("Unsqueeze")
def unsqueeze(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    if isinstance(given[0], Tokens):
        return given[0]
    return decoder.emit(relax.op.expand_dims(decoder.tensor(given[0]), [int(axis) for axis in given[1].ravel()]))


@operator("Gather")
def gather(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    number = number_of(given[1])
    if number is None or given[1].ndim:
        raise refused(node, "takes more than one entry")
    axis = attribute(node, "axis", 0)
    taken = relax.op.take(decoder.tensor(given[0]), relax.const(np.int64(number)), axis)
    return decoder.emit(taken)


@operator("Slice")
def kept_tokens(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    """The tokens that get logits."""
    value, start, _, axis = given[:4]
    if not isinstance(value, relax.Expr) or (number_of(start), number_of(axis)) != (-1, 1):
        raise refused(node, "takes something else than the last token")
    return decoder.last(value) if decoder.entry.last else value


@operator("MatMulNBits")
def block_product(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    x, codes, scales, *rest = given
    zero_points, order, bias = (*rest, None, None, None)[:3]
    if zero_points is not None or order is not None or not isinstance(codes, Parameter) or not isinstance(scales, Parameter):
        raise refused(node, "has zero points of its own, or another order of columns")
    rows, columns, block, bits = (attribute(node, name) for name in ("N", "K", "block_size", "bits"))
    if ADAPTER in codes.name or attribute(node, "accuracy_level", 0) != EIGHT_BITS:
        if bias is not None:
            raise refused(node, "has a bias, and is an adapter or does not round its inputs to eight bits")
        return unrounded_product(decoder, node, x, codes, scales)
    matrix = BlockMatrix(rows, columns, block, bits or 4)
    reason = unsupported_matrix(matrix)
    if reason:
        raise refused(node, reason)
    operands = [decoder.rows_of(x), decoder.placed(codes), decoder.placed(scales)]
    biases = [] if bias is None else [decoder.tensor(bias)]
    kernel = decoder.kernels.product(matrix, biased=bool(biases))
    made = decoder.call("block_product", kernel, [*operands, *biases], decoder.like(operands[0], rows))
    if not biases:
        decoder.products[made] = matrix, operands
    return made


@operator("RMSNormalization")
def norm(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    x, weight = given
    rows = decoder.rows_of(x)
    hidden = int(rows.ty.shape[1])
    kernel = decoder.kernels.norm(hidden, attribute(node, "epsilon", 1e-5))
    return decoder.call("norm", kernel, [rows, decoder.tensor(weight)], decoder.like(rows, hidden))


@operator("SkipSimplifiedLayerNormalization")
def skip_norm(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> list[Value]:
    x, skip, weight, *rest = given
    if any(value is not None for value in rest):
        raise refused(node, "has a bias")
    factor = 1.0
    if isinstance(skip, Scaled):
        skip, factor = skip.value, skip.factor
    rows = decoder.rows_of(x)
    hidden = int(rows.ty.shape[1])
    kernel = decoder.kernels.skip_norm(hidden, attribute(node, "epsilon"), factor)
    types = [decoder.like(rows, hidden)] * 2
    made = decoder.call("skip_norm", kernel, [rows, decoder.rows_of(skip), decoder.tensor(weight)], types)
    normed, total = (decoder.emit(relax.TupleGetItem(made, number)) for number in range(2))
    return [normed, None, None, total]


@operator("RotaryEmbedding")
def rotary(_: Translation, node: onnx.NodeProto, given: list[Value]) -> Value:
    if attribute(node, "interleaved", 0) or len(given) != 3:
        raise refused(node, "rotates neighbouring channels, or by positions of its own")
    return Rotated(*given)


@operator(ATTENTION)
def attention(decoder: Translation, node: onnx.NodeProto, given: list[Value]) -> list[Value]:
    query, key, value, keys, values, *mask = given[:7]
    queries, heads = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    packed, scale = packed_heads(node, query, key, value)
    if not all(isinstance(each, Mask) for each in mask) or attribute(node, "do_rotary", 0):
        raise refused(node, "takes other lengths than the mask's")
    if any(attribute(node, name, plain) != plain for name, plain in PLAIN_ATTENTION.items()):
        raise refused(node, f"has one of {', '.join(PLAIN_ATTENTION)}")
    cos, sin = decoder.tensor(key.cos), decoder.tensor(key.sin)
    half, kind = int(cos.ty.shape[-1]), str(keys.ty.dtype)
    size = query.value.width // queries
    scale *= attribute(node, "scale", 0.0) or size**-0.5
    shape = FlatHeads(queries, heads, size, int(keys.ty.shape[3]), 2 * half, scale, kind)
    reason = unsupported_heads(shape)
    if reason:
        raise refused(node, reason)
    tables = [decoder.rows_of(table) for table in (cos, sin)]
    cached = [decoder.emit(relax.op.reshape(decoder.tensor(each), (-1,))) for each in given[12:14]] if kind == "int8" else []
    if (len(given) > 7 and any(each is not None for each in given[7:12])) or (kind == "int8") != bool(cached):
        raise refused(node, "has a bias, a sink or tables of its own")
    operands = [decoder.rows_of(packed), *tables, decoder.lengths, *cached, keys, values]
    last = decoder.of_last(node)
    out = relax.TensorType((1 if last else operands[0].ty.shape[0], queries * shape.size), "float32")
    places = [len(operands) - 2, len(operands) - 1]
    kernel = decoder.kernels.attention(shape, decoder.entry.kind, last)
    return [decoder.call_in_place("attention", kernel, operands, places, out), None, None]


def packed_heads(node: onnx.NodeProto, query: Value, key: Value, value: Value) -> tuple[relax.Var, float]:
    """The projection that holds queries, keys and values side by side, and the factor that lies in the queries' tables."""
    if isinstance(query, Rotated) and isinstance(key, Rotated):
        parts, factor = [query.value, key.value, value], 1.0
        tables = (query.cos, query.sin)
        if all(isinstance(table, Scaled) for table in tables) and query.cos.factor == query.sin.factor:
            factor, tables = query.cos.factor, (query.cos.value, query.sin.value)
        ends = np.cumsum([part.width if isinstance(part, Part) else 0 for part in parts])
        alike = all(isinstance(part, Part) and part.source.same_as(parts[0].source) for part in parts)
        places = alike and [part.start for part in parts] == [0, *map(int, ends[:-1])]
        if places and same(tables[0], key.cos) and same(tables[1], key.sin):
            return parts[0].source, factor
    raise refused(node, "does not attend to the parts of one projection, all turned alike")
