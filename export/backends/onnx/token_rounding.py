"""What `int8_linear` does to a layer's input, in PyTorch: rounded and read back. Towers are measured and checked with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from export.backends.onnx.choices import rounds_finely
from export.backends.onnx.int8_linear import ACTIVATED, ACTIVATED_ZERO, FINER, HIGHEST, LEAST_SCALE, ZERO


def token_codes(x: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    """Codes 0 to 127 of a token's values, and its scale: the least that holds both ends of its range."""
    scale = torch.maximum(x.amax(-1, keepdim=True) / (HIGHEST - zero), x.amin(-1, keepdim=True) / -zero)
    scale = scale.clamp(min=LEAST_SCALE)
    return (torch.round(x / scale) + zero).clamp(0, HIGHEST), scale


def token(name: str) -> Callable[[Tensor], Tensor]:
    """How the tower's layer of this name rounds its input, float32 with features last, to 7 bits."""
    zero = ACTIVATED_ZERO if name.endswith(ACTIVATED) else ZERO

    def rounded(x: Tensor) -> Tensor:
        codes, scale = token_codes(x, zero)
        return (codes - zero) * scale

    return rounded


def finely(name: str) -> Callable[[Tensor], Tensor]:
    """The same in 14 bits: what is left over is rounded too."""
    first = token(name)

    def rounded(x: Tensor) -> Tensor:
        read, (_, scale) = first(x), token_codes(x, ACTIVATED_ZERO if name.endswith(ACTIVATED) else ZERO)
        return read + torch.round((x - read) * FINER / scale) * scale / FINER

    return rounded


def rounding_of(name: str, grid: str) -> Callable[[Tensor], Tensor]:
    """How a package's tower rounds the input of the layer of this name, whose matrix has this grid."""
    return finely(name) if rounds_finely(name, grid) else token(name)
