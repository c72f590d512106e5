"""Operators of a graph in memory decomposed into plain ones: attention as two products and a softmax, float16 as float32.

For execution providers whose own attention is wrong on a device, or that have no float16 there
(`runtime_py.backends.webgpu`). What leaves a decomposed operator is what the operator gives, the cache's rows among it; the
cache becomes float32, and so does everything else that is float16 by choice of storage. The meaning of the operators:
microsoft/onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime_py.errors import PackageError

FULL, CACHED = "MultiHeadAttention", "GroupQueryAttention"
HIDDEN = -3.0e38
"""What is added to the score of a position that a row must not see."""


def decompose_attention(model: Any) -> int:
    """Rewrite every attention of an onnx.ModelProto in place; returns how many there were.

    Sequences of a call are taken to be equally long: one sequence, as the cache of `runtime_py.backends.ort.OrtState` is.

    Raises:
        PackageError: an attention has inputs that no graph of ours has.
    """
    graph = model.graph
    nodes, count = [], 0
    for node in graph.node:
        if node.op_type not in (FULL, CACHED):
            nodes.append(node)
            continue
        count += 1
        nodes += _full(node) if node.op_type == FULL else _cached(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def widen(model: Any) -> None:
    """Make float32 of everything in an onnx.ModelProto that is float16 by choice of storage, in place.

    Casts to float16, the cache at the graph's border, tables and their scales are widened; stored numbers stay what they
    are. A rounding that belongs to the model, a cast there and back (Awaker's gates), stays.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    rounded = {name for node in graph.node if _casts_to(node, TensorProto.FLOAT) for name in node.input}
    stored = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        if _casts_to(node, TensorProto.FLOAT16) and node.output[0] not in rounded:
            node.attribute[0].i = TensorProto.FLOAT
        place = {"GatherBlockQuantized": 2, "Gather": 0}.get(node.op_type)
        if place is not None and node.input[place] in stored:
            wide = f"{node.output[0]}/wide"
            nodes.append(helper.make_node("Cast", [node.input[place]], [wide], to=TensorProto.FLOAT))
            node.input[place] = wide
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]


def split_fused_products(model: Any) -> int:
    """Write every FusedMatMul by a transposed matrix as Transpose and MatMul, in place; returns how many there were.

    The WebGPU provider has no kernel for the fused operator. The transposition of a stored matrix is computed at load.
    """
    nodes, count = [], 0
    for node in model.graph.node:
        if node.op_type != "FusedMatMul" or _attributes(node) != {"transB": 1}:
            nodes.append(node)
            continue
        write = _Writer(node)
        write("MatMul", node.input[0], write("Transpose", node.input[1], perm=[1, 0]), gives=node.output[0])
        nodes += write.nodes
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def round_in_float32(model: Any) -> int:
    """Write every rounding that belongs to the model, a cast to float16 and back, in float32 arithmetic, in place.

    A product with 2**13 + 1 leaves 11 of 24 bits (T. J. Dekker, 1971): float16's precision, between 6e-5 and 65504.
    Returns how many there were.
    """
    from onnx import TensorProto

    graph = model.graph
    halves = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16)}
    nodes, count = [], 0
    for node in graph.node:
        if _casts_to(node, TensorProto.FLOAT16):
            continue
        if not (_casts_to(node, TensorProto.FLOAT) and node.input[0] in halves):
            nodes.append(node)
            continue
        write, value = _Writer(node), halves[node.input[0]]
        high = write("Mul", value, write.constant(float(2**13 + 1)))
        write("Sub", high, write("Sub", high, value), gives=node.output[0])
        nodes += write.nodes
        count += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return count


def _casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(given.name == "to" and given.i == kind for given in node.attribute)


class _Writer:
    """Nodes in the place of one, with names that begin with its name.

    Attributes:
        nodes: onnx.NodeProto, in order.
    """

    def __init__(self, node: Any) -> None:
        self.prefix = f"{node.name or node.output[0]}/apart"
        self.nodes: list[Any] = []

    def __call__(self, operator: str, *inputs: str, gives: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its value, which is ``gives`` where that is given."""
        from onnx import helper

        output = gives or f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: Sequence[int] | int | float) -> str:
        """A constant: int64 of whole numbers, float32 otherwise."""
        from onnx import numpy_helper

        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        return self("Constant", value=numpy_helper.from_array(array))


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {given.name: helper.get_attribute_value(given) for given in node.attribute}


def _scale(write: _Writer, node: Any, query: str) -> str:
    """The queries times the operator's scale; it is given in every graph of ours."""
    scale = _attributes(node).get("scale", 0.0)
    if not scale:
        raise PackageError(f"{node.op_type} '{node.name}' says no scale", "an attribute scale", "export the package again")
    return write("Mul", query, write.constant(float(scale)))


def _refuse_inputs(node: Any, taken: int) -> None:
    further = [name for name in node.input[taken:] if name]
    if further:
        raise PackageError(
            f"{node.op_type} '{node.name}' takes {', '.join(further)}",
            f"its first {taken} inputs alone",
            "run the package on the processor: leave the provider out",
        )


def _full(node: Any) -> list[Any]:
    """MultiHeadAttention: (batch, rows, heads * width) of queries, keys and values; every row sees every other."""
    _refuse_inputs(node, 3)
    write = _Writer(node)
    heads = write.constant([0, 0, _attributes(node)["num_heads"], -1])
    query, key, value = (write("Reshape", name, heads) for name in node.input[:3])
    query = _scale(write, node, write("Transpose", query, perm=[0, 2, 1, 3]))
    scores = write("MatMul", query, write("Transpose", key, perm=[0, 2, 3, 1]))
    seen = write("MatMul", write("Softmax", scores, axis=-1), write("Transpose", value, perm=[0, 2, 1, 3]))
    write("Reshape", write("Transpose", seen, perm=[0, 2, 1, 3]), write.constant([0, 0, -1]), gives=node.output[0])
    return write.nodes


def _cached(node: Any) -> list[Any]:
    """GroupQueryAttention over a cache (batch, kv_heads, capacity, width), filled behind the rows that are there."""
    from onnx import TensorProto

    given = _attributes(node)
    if given.get("do_rotary") or given.get("softcap") or given.get("local_window_size", -1) > 0:
        raise PackageError(
            f"GroupQueryAttention '{node.name}' turns, caps or windows", "plain attention", "export the package again"
        )
    _refuse_inputs(node, 7)
    write = _Writer(node)
    query, key, value, past_key, past_value, _, total32 = node.input[:7]
    kv_heads = given["kv_num_heads"]
    group = given["num_heads"] // kv_heads
    rows = write("Shape", query, start=1, end=2)
    total = write("Cast", total32, to=TensorProto.INT64)
    filled = write("Sub", total, rows)
    shape = write.constant([0, 0, kv_heads, -1])
    news = [write("Transpose", write("Reshape", name, shape), perm=[0, 2, 1, 3]) for name in (key, value)]
    axis, front, end = write.constant([2]), write.constant([0]), write.constant([2**31 - 1])
    present = []
    for past, new, gives in zip((past_key, past_value), news, node.output[1:3], strict=True):
        before, behind = write("Slice", past, front, filled, axis), write("Slice", past, total, end, axis)
        present.append(write("Concat", before, new, behind, axis=2, gives=gives))
    keys, values = (write("Slice", name, front, total, axis) for name in present)
    # (batch, rows, heads, width) -> (batch, kv_heads, group * rows, width): the queries of a group share keys
    split = write("Reshape", query, write.constant([0, 0, kv_heads, group, -1]))
    turned = write("Transpose", _scale(write, node, split), perm=[0, 2, 3, 1, 4])
    width = write("Shape", past_key, start=3, end=4)
    flat = write("Reshape", turned, write("Concat", write.constant([0, 0, -1]), width, axis=0))
    scores = write("MatMul", flat, write("Transpose", keys, perm=[0, 1, 3, 2]))
    by_row = write("Concat", write.constant([0, 0, group]), rows, total, axis=0)
    masked = write("Add", write("Reshape", scores, by_row), _mask(write, rows, filled, total))
    weights = write("Reshape", write("Softmax", masked, axis=-1), write("Concat", write.constant([0, 0, -1]), total, axis=0))
    seen = write("MatMul", weights, values)
    apart = write("Reshape", seen, write("Concat", write.constant([0, 0, group]), rows, width, axis=0))
    write("Reshape", write("Transpose", apart, perm=[0, 3, 1, 2, 4]), write.constant([0, 0, -1]), gives=node.output[0])
    return write.nodes


def _mask(write: _Writer, rows: str, filled: str, total: str) -> str:
    """(1, 1, 1, rows, total): 0 where a row sees a position, the one of its own token and all before it, else `HIDDEN`.

    As many axes as the scores have: the WebGPU provider of ONNX Runtime 1.27 fails on some sums of two and of five.
    """
    scalar = write.constant([])
    begins, ends = (write("Reshape", name, scalar) for name in (filled, total))
    one = write.constant(1)
    own = write("Range", begins, ends, one)
    positions = write("Range", write.constant(0), ends, one)
    by_row = write("Concat", write.constant([1, 1, 1]), rows, write.constant([1]), axis=0)
    seen = write("LessOrEqual", positions, write("Reshape", own, by_row))
    return write("Where", seen, write.constant(0.0), write.constant(HIDDEN))
