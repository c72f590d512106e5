"""What is done to a traced graph for TensorRT's parser, in order."""

from __future__ import annotations

import onnx_ir as ir

from export.graphs.stage_values import CODES
from export.passes.base import GraphPass, Part
from export.passes.parameters import Parameter
from runtime_py.contracts import DECODER

CACHE_PREFIXES = ("past_key_values.", "present.")
LENGTH = 2
"""The axis of a cache tensor that counts positions."""


def graph_passes(stage: str, capacity: int) -> list[GraphPass]:
    """The passes of a stage's graph; ``capacity`` is the number of positions in the decoder's cache buffer."""
    fixed: list[GraphPass] = [FixCapacity(capacity)] if stage == DECODER else []
    return [*fixed, RenameNodes(), PackedCodes()]


class FixCapacity(GraphPass):
    """Fixes the length of past and present, which are one buffer: TensorRT's cache layer wants a number there."""

    changes = frozenset({Part.BORDER})

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def rewrite(self, model: ir.Model) -> int:
        values = [v for v in (*model.graph.inputs, *model.graph.outputs) if (v.name or "").startswith(CACHE_PREFIXES)]
        for value in values:
            sizes = list(value.shape or ())
            sizes[LENGTH] = self.capacity
            value.shape = ir.Shape(sizes)
        return len(values)


class RenameNodes(GraphPass):
    """Gives nodes names that do not end in ``_`` and a number.

    The parser makes such names up for the layers of one node, and fails when another node has one already
    (tensorrt-rtx 1.7.1: "the new name is already in use").
    """

    changes = frozenset({Part.NODE_NAMES})

    def rewrite(self, model: ir.Model) -> int:
        for index, node in enumerate(model.graph):
            node.name = f"{index:05d}.{node.op_type}"
        return len(model.graph)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError when two nodes have one name, or one has a name that the parser might make up."""
        super().ensures(model)
        names = [node.name or "" for node in model.graph]
        if len(set(names)) != len(names) or any(name.rpartition("_")[2].isdecimal() for name in names):
            raise ir.passes.PostconditionError(f"{self}: names that the parser may make up")


class PackedCodes(GraphPass):
    """Says of int4 codes what they are: PyTorch knows bytes of two codes, ONNX has a dtype of four bits."""

    changes = frozenset({Part.INITIALIZERS})

    def rewrite(self, model: ir.Model) -> int:
        codes = {name: value for name, value in model.graph.initializers.items() if name.endswith(CODES)}
        for name, value in codes.items():
            assert value.const_value is not None
            *rows, pairs = value.const_value.shape.numpy()
            value.const_value = Parameter(name, ir.DataType.INT4, (*rows, 2 * pairs))
            value.dtype, value.shape = ir.DataType.INT4, ir.Shape((*rows, 2 * pairs))
        return len(codes)
