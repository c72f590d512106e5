"""Linear layers of 8-bit weights whose input is rounded to 8 bits too, one scale a token: vision towers of int4 packages.

A token's scale needs no calibration and follows the picture, and the product of bytes is what processors are fastest at
(AMX, VNNI, arm64's dot product). Inputs are unsigned and matrices signed, the one pair that ONNX Runtime multiplies with
AMX: both unsigned took 9 times as long, both signed 30 times (measured with 1.32). An x86 processor without
VNNI adds two of these products in sixteen bits, which overflow (onnxruntime,
docs/performance/model-optimizations/quantization.md): a trained tower's worst token fell from cosine 0.9999 to 0.995. So the
codes of inputs stop at 127, where 2 * 127 * 128 fits, and the numbers are the same on every processor.

Where a tower is sensitive (`export.backends.onnx.choices.rounds_finely`) what rounding leaves over is rounded and multiplied
too: 14 bits for two products of bytes, which together take a quarter of the time of one in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

HIGHEST, ZERO = 127, 64
"""The largest code of an input, and the code that is zero in it."""

ACTIVATED, ACTIVATED_ZERO = ".mlp.fc2", 16
"""Layers that read an activation's output, which reaches far above zero and hardly below (GELU to -0.17, SiLU to -0.28), and
the code that is zero in their input: 111 steps upward in place of 63."""

PRODUCT = "com.microsoft::MatMulIntegerToFloat"

FINER = 2 * (ZERO - 1)
"""By how much the scale of what is left over is smaller: half a step of the first rounding is the second's whole range."""

LEAST_SCALE = 1e-30
"""Of a token that is zero throughout, so that nothing is divided by zero."""


class Int8TokenLinear(nn.Module):
    """y = x W^T (+ b), x rounded to 0..127 with one scale a row of (tokens, in), W int8 with one scale a row of (out, in).

    Initializers: codes int8 (out, in), scales float32 (out,), bias float32 (out,).

    Args:
        zero: the code that is 0 in the input; the scale is the least that holds both ends of the token's range.
        finely: round what is left over as well, in `FINER` steps for one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, zero: int, finely: bool = False) -> None:
        super().__init__()
        self.out_features, self.zero, self.finely = out_features, zero, finely
        self.weight_codes = nn.Parameter(torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.weight_scales = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        above, below = x.amax(-1, keepdim=True) / (HIGHEST - self.zero), x.amin(-1, keepdim=True) / -self.zero
        scale = torch.maximum(above, below).clamp(min=LEAST_SCALE)
        tokens, scales = x.flatten(0, -2), scale.flatten()
        codes, zeros = self._rounded(tokens, scales, self.zero)
        # the operator takes (in, out); the file keeps (out, in), which is how rows are read and written
        matrix = self.weight_codes.t()
        y = self._product(codes, matrix, 1.0, self.zero)
        if self.finely:
            read = symbolic(
                "DequantizeLinear", (codes, scales, zeros), {"axis": 0}, dtype=x.dtype, shape=tokens.shape, version=23
            )
            left, _ = self._rounded(tokens - read, scales / FINER, ZERO)
            y = y + self._product(left, matrix, 1.0 / FINER, ZERO)
        y = y.unflatten(0, x.shape[:-1]) * scale
        # a row: ONNX Runtime joins a bias of one axis and the GELU behind it to BiasGelu, half as fast as the two (1.32)
        return y if self.bias is None else y + self.bias[None]

    @staticmethod
    def _rounded(tokens: Tensor, scales: Tensor, zero: int) -> tuple[Tensor, Tensor]:
        """Codes of (tokens, in), and the zero of each row."""
        zeros = torch.full((tokens.shape[0],), zero, dtype=torch.uint8)
        inputs, shape = (tokens, scales, zeros), tokens.shape
        return symbolic("QuantizeLinear", inputs, {"axis": 0}, dtype=torch.uint8, shape=shape, version=23), zeros

    def _product(self, codes: Tensor, matrix: Tensor, scale: float, zero: int) -> Tensor:
        """(tokens, out) float32: (codes - zero) times ``scale`` times the matrix."""
        inputs = (codes, matrix, torch.full((), scale), self.weight_scales, torch.full((), zero, dtype=torch.uint8))
        return symbolic(PRODUCT, inputs, {}, dtype=torch.float32, shape=(codes.shape[0], self.out_features), version=1)
