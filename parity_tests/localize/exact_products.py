"""Products of bytes in a graph made products of float32 again: the rounding of what a layer reads is taken out of a copy.

`export.backends.onnx.int8_linear` writes a layer as QuantizeLinear, with a scale a row, and MatMulIntegerToFloat, whose
result is then multiplied by these scales; `rotated_linear` beside it divides rows by theirs first, and has one scale for
all. In the copy the input is divided by its scales and stays what it is,
and the matrix is read back from its codes, so that the rest of the graph, and what it stores, is the package's own. Where
what a rounding leaves over is rounded too, nothing is left over in the copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROUNDED, READ, PRODUCT = "QuantizeLinear", "DequantizeLinear", "MatMulIntegerToFloat"


def set_float_products(model: Any) -> int:
    """Change every such product of an onnx.ModelProto; return how many there were."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == PRODUCT and makers[node.input[0]].op_type == ROUNDED]
    rounded = {node.input[0]: makers[node.input[0]] for node in products}
    replaced = {node.output[0]: list(_product(node)) for node in products}
    replaced |= {name: list(_division(node)) for name, node in rounded.items()}
    read = [node for node in graph.node if node.op_type == READ and node.input[0] in rounded]
    replaced |= {node.output[0]: [_multiplied(node)] for node in read}
    nodes = [new for node in graph.node for new in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # what was said of the codes is no longer so: they were bytes
    return len(products)


def _division(node: Any) -> Iterator[Any]:
    """Tokens over their scales, one for each or one for all, under the name of the codes."""
    from onnx import helper

    tokens, scales = node.input[:2]
    (codes,) = node.output
    if not any(attribute.name == "axis" for attribute in node.attribute):
        yield helper.make_node("Identity", [scales], [f"{codes}.scales"], name=f"{node.name}.scales")
        yield helper.make_node("Div", [tokens, scales], [codes], name=f"{node.name}.exact")
        return
    yield helper.make_node("Constant", [], [f"{codes}.column"], name=f"{node.name}.column", value_ints=[-1, 1])
    yield helper.make_node("Reshape", [scales, f"{codes}.column"], [f"{codes}.scales"], name=f"{node.name}.scales")
    yield helper.make_node("Div", [tokens, f"{codes}.scales"], [codes], name=f"{node.name}.exact")


def _multiplied(node: Any) -> Any:
    """The tokens again, where codes were read back."""
    from onnx import helper

    codes = node.input[0]
    return helper.make_node("Mul", [codes, f"{codes}.scales"], list(node.output), name=f"{node.name}.exact")


def _product(node: Any) -> Iterator[Any]:
    """The same product with the matrix read back: codes * scale, a scale a column; and the scale of all tokens."""
    from onnx import TensorProto, helper

    tokens, codes, scale, scales = node.input[:4]
    stem = node.output[0]

    wide, matrix, product = f"{stem}.wide", f"{stem}.matrix", f"{stem}.product"
    yield helper.make_node("Cast", [codes], [wide], name=f"{node.name}.wide", to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [wide, scales], [matrix], name=f"{node.name}.matrix")
    yield helper.make_node("MatMul", [tokens, matrix], [product], name=f"{node.name}.exact")
    yield helper.make_node("Mul", [product, scale], [stem], name=f"{node.name}.scale")
