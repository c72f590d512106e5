"""Linear layers of a decoder for calls of many rows: bytes times bytes, one scale a row, behind a turn of the row.

A row of a language model holds a few values that are many times the others, so that a byte with one scale says little of
the others (in 7 bits a trained decoder moved by 0.16 nats). Turned by a Hadamard matrix, block by block, a row has no such
values left, and the same decoder moves by 0.008, the matrices' own rounding included (docs/results/many_rows.md). Why inputs
have 191 steps and not 256: `export.quantisation.grid_rotated`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from export.backends.onnx.int8_linear import LEAST_SCALE, PRODUCT
from export.quantisation.grid_rotated import INPUT_STEPS
from export.quantisation.hadamard import block_of, matrix


class RotatedRowLinear(nn.Module):
    """y = x W^T (+ b) of x (batch, rows, in): x H rounded with one scale a row, W H int8 with one scale a row of (out, in).

    Each row is divided by its largest magnitude and rounded to 95 steps either way; rows do not touch each other. H:
    `export.quantisation.hadamard`. Initializers: codes int8 (out, in) of W H, scales float32 (out,), bias float32 (out,).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight_codes = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.weight_scales = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = self._turned(x)
        largest = rows.abs().amax(-1, keepdim=True).clamp(min=LEAST_SCALE)
        step, zero = torch.full((), 1.0 / INPUT_STEPS), torch.full((), INPUT_STEPS, dtype=torch.uint8)
        codes = symbolic("QuantizeLinear", (rows / largest, step, zero), {}, dtype=torch.uint8, shape=rows.shape, version=23)
        inputs, shape = (codes, self.weight_codes.t(), step, self.weight_scales, zero), codes.shape[:-1]
        y = largest * symbolic(PRODUCT, inputs, {}, dtype=torch.float32, shape=(*shape, self.out_features), version=1)
        return y if self.bias is None else y + self.bias

    def _turned(self, x: Tensor) -> Tensor:
        block = block_of(self.in_features)
        if block == 1:
            return x
        blocks = self.in_features // block
        rotation = symbolic(
            "Constant", (), {"value_floats": matrix(block)}, dtype=x.dtype, shape=(block * block,), version=13
        )
        apart = _reshaped(x, [0, 0, blocks, block])
        return _reshaped(apart @ rotation.view(block, block), [0, 0, self.in_features])


def _reshaped(x: Tensor, shape: list[int]) -> Tensor:
    """With the first two axes as they are (0): their sizes, which differ from call to call, stay out of the graph."""
    wanted = symbolic("Constant", (), {"value_ints": shape}, dtype=torch.int64, shape=(len(shape),), version=13)
    return symbolic("Reshape", (x, wanted), {}, dtype=x.dtype, shape=(*x.shape[:2], *shape[2:]), version=23)
