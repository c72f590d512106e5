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

import onnx
import torch
from torch import Tensor, nn

from export.modules.decoders.low_rank import Gate
from export.modules.kernels import CachedAttention

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

    def resolve(self, model: onnx.ModelProto) -> dict[str, str]:
        """Remove the markers from ``model``; return path to value name (``layers.3`` to ``layers.3.output``).

        A value that is marked already, or is an input of the graph, cannot get another name: a second mark becomes an
        Identity, and a mark on an input is dropped.
        """
        graph = model.graph
        marks = [node for node in graph.node if node.domain == DOMAIN]
        given, marked = {value.name for value in graph.input}, {node.output[0] for node in marks}
        dropped = [node for node in marks if node.input[0] in given]
        marks = [node for node in marks if node.input[0] not in given]
        outputs = {value.name for value in graph.output}
        second = [node for node in marks if node.input[0] in marked]
        renamed = {node.input[0]: _value_name(node) for node in marks if node not in second}
        renamed |= {node.output[0]: _value_name(node) for node in marks if node.output[0] not in outputs}
        renamed |= {node.output[0]: node.input[0] for node in dropped if node.output[0] not in outputs}
        copied = {node.output[0] for node in second} | outputs
        kept = [_passed_on(node) for node in graph.node if node.domain != DOMAIN or node.output[0] in copied]
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


def _block(node: onnx.NodeProto) -> str:
    return next(attribute.s.decode() for attribute in node.attribute if attribute.name == "block")


def _value_name(node: onnx.NodeProto) -> str:
    return f"{_block(node)}.output"
