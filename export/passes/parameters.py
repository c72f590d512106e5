"""The parameters of a traced graph: out of the way while constants are folded, then initializers without data.

`HideParameters` and `DeclareParameters` stand around whatever folds constants: as inputs, parameters have nothing to read,
so that only what is known is folded. Data comes when the graph is written (`export.graphs.writer`).
"""

from __future__ import annotations

from typing import NoReturn

import onnx_ir as ir
from onnx import TensorProto

from export.passes.base import GraphPass, Part


class Parameter(ir.serde.TensorProtoTensor):
    """A name, a dtype and a shape; written as a TensorProto that holds nothing else."""

    def __init__(self, name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> None:
        super().__init__(TensorProto(name=name, data_type=int(dtype), dims=shape))

    def numpy(self) -> NoReturn:
        """Raise ValueError: a parameter has no data."""
        raise ValueError(f"{self.name} is a parameter: it has no data before the graph is written")

    def __repr__(self) -> str:
        return f"{self._repr_base()}({self.name})"


class HideParameters(GraphPass):
    """Makes inputs of the initializers whose name starts with ``prefix``, behind the graph's own, and drops the prefix."""

    changes = frozenset({Part.BORDER, Part.INITIALIZERS, Part.NODES})

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def rewrite(self, model: ir.Model) -> int:
        graph = model.graph
        names = [name for name in graph.initializers if name.startswith(self.prefix)]
        for name in names:
            value = graph.initializers.pop(name)
            value.const_value = None
            value.name = name.removeprefix(self.prefix)
            graph.inputs.append(value)
        return len(names)


class DeclareParameters(GraphPass):
    """Makes initializers without data of the inputs behind the first ``border``; those that nothing reads go."""

    changes = frozenset({Part.BORDER, Part.INITIALIZERS})

    def __init__(self, border: int) -> None:
        self.border = border

    def requires(self, model: ir.Model) -> None:
        """Raise PreconditionError when the graph has fewer inputs than its border, or a shape is not known."""
        if len(model.graph.inputs) < self.border:
            raise ir.passes.PreconditionError(f"{self}: {len(model.graph.inputs)} inputs, {self.border} at the border")
        vague = [value.name for value in model.graph.inputs[self.border :] if value.dtype is None or value.shape is None]
        if vague:
            raise ir.passes.PreconditionError(f"{self}: the shape of {vague[0]} is not known")

    def rewrite(self, model: ir.Model) -> int:
        graph = model.graph
        parameters = graph.inputs[self.border :]
        del graph.inputs[self.border :]
        for value in parameters:
            if value.uses():
                assert value.name is not None and value.dtype is not None and value.shape is not None
                value.const_value = Parameter(value.name, value.dtype, tuple(value.shape.numpy()))
                graph.register_initializer(value)
        return len(parameters)

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError unless the border alone is left of the inputs."""
        super().ensures(model)
        if len(model.graph.inputs) != self.border:
            raise ir.passes.PostconditionError(f"{self}: {len(model.graph.inputs)} inputs, {self.border} at the border")
