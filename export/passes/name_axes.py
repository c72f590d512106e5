"""Gives the axes of a graph's values the names of the stage's contract, or those of another vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from export.passes.base import GraphPass, Part
from runtime_py.contracts import StageContract, TensorContract


class NameAxes(GraphPass):
    """Names the dynamic axes, after checking that they are dynamic and that the tensors are the contract's.

    Axes inside the graph that are as long as one of them get its name; of others nothing is known: the exporter calls them
    differently every time.
    """

    changes = frozenset({Part.BORDER})

    def __init__(self, contract: StageContract) -> None:
        self.contract = contract

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError when a tensor has another name, or an axis was traced as a constant."""
        for value, tensor in self._pairs(model):
            if value.name != tensor.name:
                raise ir.passes.PreconditionError(f"{self.contract.stage}: '{tensor.name}' was traced as '{value.name}'")
            for axis, wanted in zip(value.shape or (), tensor.shape, strict=True):
                if isinstance(wanted, str) == isinstance(axis, int):
                    raise ir.passes.PreconditionError(
                        f"{self.contract.stage}: axis '{wanted}' of '{tensor.name}' was traced as {axis}"
                    )

    def rewrite(self, model: ir.Model) -> int:
        names: dict[str, str | None] = {}
        for value, tensor in self._pairs(model):
            for axis, wanted in zip(value.shape or (), tensor.shape, strict=True):
                if isinstance(wanted, str):
                    names[str(axis)] = wanted if names.get(str(axis), wanted) == wanted else None
        for inner in _inner(model.graph):
            assert inner.shape is not None
            inner.shape = ir.Shape([axis if isinstance(axis, int) else names.get(str(axis)) for axis in inner.shape])
        for value, tensor in self._pairs(model):
            axes = zip(value.shape or (), tensor.shape, strict=True)
            value.shape = ir.Shape([wanted if isinstance(wanted, str) else axis for axis, wanted in axes])
        return len(self.contract.inputs) + len(self.contract.outputs)

    def _pairs(self, model: ir.Model) -> list[tuple[ir.Value, TensorContract]]:
        inputs = zip(model.graph.inputs, self.contract.inputs, strict=True)
        return [*inputs, *zip(model.graph.outputs, self.contract.outputs, strict=True)]


class RenameAxes(GraphPass):
    """Calls axes by other names, at the border and inside."""

    changes = frozenset({Part.BORDER})

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def rewrite(self, model: ir.Model) -> int:
        graph, changed = model.graph, 0
        for value in (*graph.inputs, *_inner(graph)):
            assert value.shape is not None
            plain = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
            renamed = [self.names.get(axis, axis) if isinstance(axis, str) else axis for axis in plain]
            value.shape = ir.Shape(renamed)
            changed += renamed != plain
        return changed


def _inner(graph: ir.Graph) -> Iterator[ir.Value]:
    """What the nodes make, as far as its shape is known."""
    return (value for node in graph for value in node.outputs if value.shape is not None)
