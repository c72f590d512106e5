"""Which ONNX value leaves each block, found by marking block outputs while the modules are traced.

A forward hook passes each block's hidden state through a marker operator. Once the graph is made the markers are taken
out again and the marked values get the block's name, so the map is right by construction, whatever the exporter called
its nodes, and stays right through any pass that keeps value names.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch import Tensor, nn

DOMAIN = "edgeproof.marks"


class BlockMarks:
    """Marks the blocks of one stage: every member of a module list anywhere in it."""

    def attach(self, module: nn.Module) -> None:
        """Hook every block of ``module``; a block returns its hidden state, or a tuple that starts with it."""
        for path, container in module.named_modules():
            if isinstance(container, nn.ModuleList):
                for index, block in enumerate(container):
                    block.register_forward_hook(_marking_hook(f"{path}.{index}"))

    def resolve(self, model: onnx.ModelProto) -> dict[str, str]:
        """Remove the markers from ``model``; return block path to value name (``layers.3`` to ``layers.3.output``)."""
        graph = model.graph
        marks = [node for node in graph.node if node.domain == DOMAIN]
        outputs = {value.name for value in graph.output}
        renamed = {node.input[0]: _value_name(node) for node in marks}
        renamed |= {node.output[0]: _value_name(node) for node in marks if node.output[0] not in outputs}
        kept = [_passed_on(node) for node in graph.node if node.domain != DOMAIN or node.output[0] in outputs]
        for node in kept:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        del graph.node[:]
        graph.node.extend(kept)
        for entry in [entry for entry in model.opset_import if entry.domain == DOMAIN]:
            model.opset_import.remove(entry)
        return {_block(node): _value_name(node) for node in marks}


def _passed_on(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node itself; a marker of the last block, whose value is the stage's output too, becomes an Identity."""
    if node.domain != DOMAIN:
        return node
    return onnx.helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name)


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


def _block(node: onnx.NodeProto) -> str:
    return next(attribute.s.decode() for attribute in node.attribute if attribute.name == "block")


def _value_name(node: onnx.NodeProto) -> str:
    return f"{_block(node)}.output"
