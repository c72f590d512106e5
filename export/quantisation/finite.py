"""Casts of weights and the look for infinities and NaNs in them, without passes that cost more than the reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is an infinity or NaN, for float32, float16 and bfloat16 of any shape.

    Their bits without the sign are in the order of their magnitudes, and infinities and NaNs are the highest.
    `torch.isfinite` is fifteen times slower on float16.
    """
    import torch

    if not values.numel():
        return True
    if values.dtype == torch.float32:
        return bool(values.view(torch.int32).bitwise_and(0x7FFFFFFF).amax() < 0x7F800000)
    exponent = 0x7C00 if values.dtype == torch.float16 else 0x7F80
    return bool(values.view(torch.int16).bitwise_and(0x7FFF).amax() < exponent)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values.to(dtype)``; from bfloat16 to float16 through float32, which is exact on the way and six times faster."""
    import torch

    return values.float().to(dtype) if {values.dtype, dtype} == {torch.bfloat16, torch.float16} else values.to(dtype)
