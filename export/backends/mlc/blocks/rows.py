"""Small operators on rows of activations: the last one, chosen ones, rows known to be as many as others."""

from __future__ import annotations

from typing import Any

from tvm import relax, te
from tvm.relax.frontend.nn import Tensor, op


def last_token(x: Tensor) -> Tensor:
    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute((x.shape[0], 1, x.shape[2]), lambda b, _, n: x[b, x.shape[1] - 1, n], name="last_token")

    return op.tensor_expr_op(compute, "last_token", [x])


def rows_at(x: Tensor, positions: Tensor) -> Tensor:
    """x (batch, tokens, width) at int32 positions (outputs,)."""

    def compute(x: te.Tensor, positions: te.Tensor) -> te.Tensor:
        shape = (x.shape[0], positions.shape[0], x.shape[2])
        return te.compute(shape, lambda b, t, n: x[b, positions[t], n], name="rows_at")

    return op.tensor_expr_op(compute, "rows_at", [x, positions])


def same_shape(x: Tensor, shape: list[Any]) -> Tensor:
    """``x`` known to have ``shape``; the virtual machine checks it."""
    builder = relax.BlockBuilder.current()
    return Tensor(_expr=builder.match_cast(x._expr, relax.TensorType(shape, x.dtype)))
