"""Which ONNX value leaves each block, found by marking block outputs while the modules are traced.

A forward hook passes each block's hidden state through a marker operator. Once the graph is made the markers are taken
out again and the marked values get the block's name, so the map is right by construction, whatever the exporter called
its nodes, and stays right through any pass that keeps value names.

Named besides, so that parity_tests can look at them in a copy of the graph: what leaves the other direct children of a
stage (``norm``, ``conv``) and the routing gates, and what enters a stage's list of blocks (``blocks.input``) or its
convolution (``conv.input``).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.modules.decoders.low_rank import Gate
from export.modules.kernels import CachedAttention
from export.passes.base import GraphPass, Part, replace_nodes

DOMAIN = "edgeproof.marks"
CONVOLUTION = "conv"


class BlockMarks:
    """Marks the blocks of one stage: every member of a module list anywhere in it, and the values named above."""

    def attach(self, module: nn.Module) -> None:
        """Hook every block of ``module``; a block returns its hidden state, or a tuple that starts with it."""
        for path, part in module.named_modules():
            if isinstance(part, nn.ModuleList):
                for index, block in enumerate(part):
                    block.register_forward_hook(_marking_hook(f"{path}.{index}"))
            elif isinstance(part, Gate):
                part.register_forward_hook(_marking_hook(path))
        for path, child in module.named_children():
            if isinstance(child, nn.ModuleList):
                if len(child):
                    child[0].register_forward_pre_hook(_entering_hook(f"{path}.input"))
            elif not isinstance(child, CachedAttention):
                child.register_forward_hook(_marking_hook(path))
            if path == CONVOLUTION:
                child.register_forward_pre_hook(_entering_hook(f"{path}.input"))


class ResolveMarks(GraphPass):
    """Takes the markers out and gives the marked values their names (``layers.3.output``).

    A value that is marked already, or is an input of the graph, cannot get another name: a second mark becomes an
    Identity, and a mark on an input is dropped. A mark whose value is the stage's output too becomes an Identity.
    """

    changes = frozenset({Part.NODES, Part.BLOCK_NAMES, Part.OPERATOR_SETS})

    def rewrite(self, model: ir.Model) -> int:
        graph = model.graph
        marks = [node for node in graph if node.domain == DOMAIN]
        marked = {mark.outputs[0] for mark in marks}
        # asked of all before the first is taken out, which changes what the others' inputs are
        again = [mark.inputs[0] in marked for mark in marks]
        entering = [mark.inputs[0] in graph.inputs for mark in marks]
        for mark, second, on_input in zip(marks, again, entering, strict=True):
            _take_out(graph, mark, second, on_input)
        graph.opset_imports.pop(DOMAIN, None)
        return len(marks)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError when a marker is left."""
        super().ensures(model)
        if any(node.domain == DOMAIN for node in model.graph):
            raise ir.passes.PostconditionError(f"{self}: a marker is left")


def _take_out(graph: ir.Graph, mark: ir.Node, second: bool, on_input: bool) -> None:
    """Remove one marker, whose value another marks already (``second``) or is an input of the graph (``on_input``)."""
    value, marked = mark.inputs[0], mark.outputs[0]
    assert value is not None
    if not (second or on_input):
        value.name = _value_name(mark)
    if second or marked.is_graph_output():
        name = marked.name if marked.is_graph_output() else _value_name(mark)
        copy = ir.Node("", "Identity", [value], name=mark.name)
        replace_nodes(graph, [mark], copy, {marked: copy.outputs[0]})
        copy.outputs[0].name = name
    else:
        marked.replace_all_uses_with(value)
        graph.remove(mark, safe=True)


def _entering_hook(path: str) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_mark(inputs[0], path), *inputs[1:])

    return hook


def _marking_hook(path: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return _mark(output, path)
        return (_mark(output[0], path), *output[1:])

    return hook


def _mark(value: Tensor, path: str) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::BlockOutput", [value], {"block": path}, dtype=value.dtype, shape=value.shape, version=1
    )


def _value_name(mark: ir.Node) -> str:
    return mark.attributes["block"].as_string() + ".output"
