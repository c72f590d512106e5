"""Gives the axes of a graph's inputs and outputs the names of the stage's contract."""

from __future__ import annotations

import onnx_ir as ir

from export.passes.base import GraphPass, Part
from runtime_py.contracts import StageContract, TensorContract


class NameAxes(GraphPass):
    """Names the dynamic axes, after checking that they are dynamic and that the tensors are the contract's."""

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
        for value, tensor in self._pairs(model):
            axes = zip(value.shape or (), tensor.shape, strict=True)
            value.shape = ir.Shape([wanted if isinstance(wanted, str) else axis for axis, wanted in axes])
        return len(self.contract.inputs) + len(self.contract.outputs)

    def _pairs(self, model: ir.Model) -> list[tuple[ir.Value, TensorContract]]:
        inputs = zip(model.graph.inputs, self.contract.inputs, strict=True)
        return [*inputs, *zip(model.graph.outputs, self.contract.outputs, strict=True)]
