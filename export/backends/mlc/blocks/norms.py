"""RMSNorm and LayerNorm in Relax: statistics in float32, the variance about the mean, not from the mean square."""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op


class RMSNorm(nn.Module):
    """x / rms(x) rounded to the model dtype, times ``weight``; x (batch, tokens, width)."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        self.width, self.eps, self.dtype = width, eps, dtype
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        def compute(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
            k = te.reduce_axis((0, self.width), name="k")
            squares = te.compute(
                x.shape[:2], lambda b, t: te.sum(_square(x[b, t, k].astype("float32")), axis=k), name="squares"
            )

            def finish(b: tirx.Var, t: tirx.Var, n: tirx.Var) -> tirx.Expr:
                scale = tirx.rsqrt(squares[b, t] * tirx.const(1.0 / self.width, "float32") + tirx.const(self.eps, "float32"))
                return (x[b, t, n].astype("float32") * scale).astype(self.dtype) * weight[n]

            return te.compute(x.shape, finish, name="rms_norm")

        return op.tensor_expr_op(compute, "rms_norm", [x, self.weight])


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis of x (batch, tokens, width)."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        self.width, self.eps, self.dtype = width, eps, dtype
        self.weight = nn.Parameter((width,), dtype)
        self.bias = nn.Parameter((width,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        part = tirx.const(1.0 / self.width, "float32")

        def compute(x: te.Tensor, weight: te.Tensor, bias: te.Tensor) -> te.Tensor:
            i, j = (te.reduce_axis((0, self.width), name=name) for name in "ij")
            total = te.compute(x.shape[:2], lambda b, t: te.sum(x[b, t, i].astype("float32"), axis=i), name="total")
            spread = te.compute(
                x.shape[:2],
                lambda b, t: te.sum(_square(x[b, t, j].astype("float32") - total[b, t] * part), axis=j),
                name="spread",
            )

            def finish(b: tirx.Var, t: tirx.Var, n: tirx.Var) -> tirx.Expr:
                scale = tirx.rsqrt(spread[b, t] * part + tirx.const(self.eps, "float32"))
                centred = x[b, t, n].astype("float32") - total[b, t] * part
                return (centred * scale * weight[n].astype("float32") + bias[n].astype("float32")).astype(self.dtype)

            return te.compute(x.shape, finish, name="layer_norm")

        return op.tensor_expr_op(compute, "layer_norm", [x, self.weight, self.bias])


def _square(value: tirx.Expr) -> tirx.Expr:
    return value * value
