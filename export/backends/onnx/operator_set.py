"""The operator set of traced modules for ONNX Runtime: domain, opset, attributes, and parameters as initializers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]

MICROSOFT = "com.microsoft"
OPSET = 23
"""The first ONNX opset with RotaryEmbedding and RMSNormalization."""


def stored(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """An uninitialised parameter, which becomes an initializer without data."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
