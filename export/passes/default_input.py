"""Gives an optional graph input a value of its own, so that a caller may leave it out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.passes.base import GraphPass, Part


class DefaultInput(GraphPass):
    """Stores ``value`` as the initializer behind the input ``name``; the input itself stays."""

    changes = frozenset({Part.INITIALIZERS})

    def __init__(self, name: str, value: np.ndarray) -> None:
        self.name, self.value = name, value

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError when the graph has no such input."""
        if self.name not in [value.name for value in model.graph.inputs]:
            raise ir.passes.PreconditionError(f"{self}: the graph has no input {self.name}")

    def rewrite(self, model: ir.Model) -> int:
        value = next(value for value in model.graph.inputs if value.name == self.name)
        value.const_value = ir.tensor(self.value, name=self.name)
        model.graph.register_initializer(value)
        return 1
