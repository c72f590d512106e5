"""Linear layers and embeddings in Relax, whole or int4, with sums in float32 whatever the model dtype is.

The int4 forms dequantise inside the operator that reads the weight, so that no schedule can write a whole dequantised
matrix to memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from export.backends.mlc.parameters import GROUP, PER_WORD, quantised_shapes
from export.quantisation.spec import Assignment, Storage

ZERO_POINT = 7
"""MLC's int4 codes are 0 to 14 about 7; 15 is never written (`export.quantisation.grid_mlc`)."""


def dequantised(words: te.Tensor, scales: te.Tensor, row: tirx.Expr, column: tirx.Expr, dtype: str) -> tirx.Expr:
    """One weight of an int4 matrix: (code - 7) * scale in ``dtype``."""
    # element 0 of a word lies in its four lowest bits
    shift = (column % PER_WORD * 4).astype("uint32")
    code = tirx.bitwise_and(tirx.shift_right(words[row, column // PER_WORD], shift), tirx.const(15, "uint32"))
    # signed before the zero point goes: unsigned, code 0 would wrap round
    centred = code.astype("int32") - tirx.const(ZERO_POINT, "int32")
    return centred.astype(dtype) * scales[row, column // GROUP]


class Linear(nn.Module):
    """y = x W^T (+ b) over the last axis of x (batch, tokens, in_features); ``out_dtype`` defaults to the model dtype."""

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: str, out_dtype: str = "") -> None:
        self.in_features, self.out_features = in_features, out_features
        self.model_dtype, self.out_dtype = dtype, out_dtype or dtype
        self.declare()
        self.bias = nn.Parameter((out_features,), dtype) if bias else None

    def declare(self) -> None:
        self.weight = nn.Parameter((self.out_features, self.in_features), self.model_dtype)

    def operands(self) -> list[Tensor]:
        return [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self.operands(), (self.out_features, self.in_features), self.bias, self.out_dtype)


class GroupLinear(Linear):
    """The same with int4 codes: ``q_weight`` (out, words) and ``q_scale`` (out, groups)."""

    def declare(self) -> None:
        words, scales = quantised_shapes(self.out_features, self.in_features)
        self.q_weight = nn.Parameter(words, "uint32")
        self.q_scale = nn.Parameter(scales, self.model_dtype)

    def operands(self) -> list[Tensor]:
        return [self.q_weight, self.q_scale]


def multiply(x: Tensor, operands: list[Tensor], shape: tuple[int, int], bias: Tensor | None, out_dtype: str) -> Tensor:
    """x (batch, tokens, in) times a matrix (out, in): one operator that decodes, multiplies, adds the bias and rounds.

    Args:
        operands: the matrix, or its int4 words and scales.
    """
    rows, columns = shape
    dtype = operands[-1].dtype

    def compute(x: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        weight = rest[0]
        if len(operands) == 2:
            weight = te.compute(shape, lambda n, k: dequantised(rest[0], rest[1], n, k, dtype), name="dequantise")
        k = te.reduce_axis((0, columns), name="k")
        product = te.compute(
            (x.shape[0], x.shape[1], rows),
            lambda b, t, n: te.sum(x[b, t, k].astype("float32") * weight[n, k].astype("float32"), axis=k),
            name="matmul",
        )
        # nothing left to add or round: a second loop would only copy the sums
        if bias is None and out_dtype == "float32":
            return product

        def finish(b: tirx.Var, t: tirx.Var, n: tirx.Var) -> tirx.Expr:
            total = product[b, t, n] if bias is None else product[b, t, n] + rest[-1][n].astype("float32")
            return total.astype(out_dtype)

        return te.compute(product.shape, finish, name="finish")

    name = "int4_matmul" if len(operands) == 2 else "matmul"
    return op.tensor_expr_op(compute, name, [x, *operands, *([] if bias is None else [bias])])


class Embedding(nn.Module):
    """Rows of ``weight`` (vocabulary, width) by int32 id (tokens,), times ``scale``."""

    def __init__(self, vocabulary: int, width: int, scale: float, dtype: str) -> None:
        self.weight = nn.Parameter((vocabulary, width), dtype)
        self.vocabulary, self.width, self.scale, self.dtype = vocabulary, width, scale, dtype

    def operands(self) -> list[Tensor]:
        return [self.weight]

    def row_value(self, operands: tuple[te.Tensor, ...], row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        return operands[0][row, column]

    def forward(self, ids: Tensor) -> Tensor:
        def compute(ids: te.Tensor, *operands: te.Tensor) -> te.Tensor:
            scale = tirx.const(self.scale, self.dtype)
            return te.compute(
                (ids.shape[0], self.width),
                lambda i, j: self.row_value(operands, ids[i], j) * scale,
                name="embedding_rows",
            )

        return op.tensor_expr_op(compute, "embedding_rows", [ids, *self.operands()])

    def head(self, x: Tensor) -> Tensor:
        """float32 logits (batch, tokens, vocabulary) of a tied head."""
        return multiply(x, self.operands(), (self.vocabulary, self.width), None, "float32")


class GroupEmbedding(Embedding):
    """The same with int4 codes."""

    def __init__(self, vocabulary: int, width: int, scale: float, dtype: str) -> None:
        words, scales = quantised_shapes(vocabulary, width)
        self.q_weight = nn.Parameter(words, "uint32")
        self.q_scale = nn.Parameter(scales, dtype)
        self.vocabulary, self.width, self.scale, self.dtype = vocabulary, width, scale, dtype

    def operands(self) -> list[Tensor]:
        return [self.q_weight, self.q_scale]

    def row_value(self, operands: tuple[te.Tensor, ...], row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        return dequantised(operands[0], operands[1], row, column, self.dtype)


class Layers:
    """Makes each matrix in the storage its assignment says; the counterpart of export.modules.kernels.Kernels.

    Args:
        assignments: by canonical layer name.
        dtype: model dtype.
    """

    def __init__(self, assignments: Mapping[str, Assignment], dtype: str) -> None:
        self.assignments, self.dtype = assignments, dtype

    def quantised(self, name: str) -> bool:
        assignment = self.assignments.get(name)
        return assignment is not None and assignment.storage is Storage.INT4

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, out_dtype: str = "") -> Linear:
        kind = GroupLinear if self.quantised(name) else Linear
        return kind(in_features, out_features, bias, self.dtype, out_dtype)

    def embedding(self, name: str, vocabulary: int, width: int, scale: float) -> Embedding:
        kind = GroupEmbedding if self.quantised(name) else Embedding
        return kind(vocabulary, width, scale, self.dtype)
