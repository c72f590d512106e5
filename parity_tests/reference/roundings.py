"""What the kernels of packages do to a layer's input before they multiply, in PyTorch: rounded to so many bits, and back.

Sources: ONNX operator DynamicQuantizeLinear; microsoft/onnxruntime, onnxruntime/core/mlas/lib (inputs of MatMulNBits at
accuracy level 4: one scale for as many values as a block of weights has).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Rounding = Callable[[Tensor], Tensor]
"""Float in, what is left of it after rounding out: the same shape and dtype, features last."""


def uint8_call(x: Tensor) -> Tensor:
    """DynamicQuantizeLinear and back: one scale and zero point for the whole tensor, zero representable."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    if scale == 0:
        return x
    zero = torch.round(-low / scale).clamp(0, 255)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


@dataclass(frozen=True)
class Int8Groups:
    """Symmetric int8 and back with one scale for ``group`` values along the last axis, as MatMulNBits rounds its input."""

    group: int = 32

    def __call__(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, -x.shape[-1] % self.group))
        blocks = padded.unflatten(-1, (-1, self.group))
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        rounded = torch.where(scale > 0, torch.round(blocks / scale) * scale, blocks)
        return rounded.flatten(-2)[..., : x.shape[-1]]
