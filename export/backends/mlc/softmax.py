"""softmax(logits / temperature), as the MLC engine samples from it."""

from __future__ import annotations

from tvm import te, tirx
from tvm.relax.frontend.nn import Tensor, op


def softmax_with_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """float32 logits (batch, 1, vocabulary) and temperatures (batch,) to probabilities."""
    return op.tensor_expr_op(_probabilities, "softmax_with_temperature_kernel", [logits, temperature])


def _probabilities(logits: te.Tensor, temperature: te.Tensor) -> te.Tensor:
    """softmax(logits / temperature); at a temperature of 0 the largest logits share the probability."""
    batch, vocabulary = logits.shape[0], logits.shape[2]
    i, j = (te.reduce_axis((0, vocabulary), name=name) for name in "ij")
    largest = te.compute((batch,), lambda b: te.max(logits[b, 0, i], axis=i), name="largest")

    def weight(b: tirx.Var, v: tirx.Var) -> tirx.Expr:
        cold = temperature[b] <= tirx.const(1e-5, "float32")
        # Select computes both of its values, so that the one not taken must not divide by zero
        divisor = tirx.Select(cold, tirx.const(1.0, "float32"), temperature[b])
        hot = tirx.exp((logits[b, 0, v] - largest[b]) / divisor)
        return tirx.Select(cold, (logits[b, 0, v] == largest[b]).astype("float32"), hot)

    total = te.compute((batch,), lambda b: te.sum(weight(b, j), axis=j), name="total")
    return te.compute(logits.shape, lambda b, _, v: weight(b, v) / total[b], name="probabilities")
