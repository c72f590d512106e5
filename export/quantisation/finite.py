"""Casts of weights and the look for infinities and NaNs in them, without passes that cost more than the reading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is an infinity or NaN, for float32, float16 and bfloat16 of any shape.

    `torch.isfinite` costs more than the reading on float16.
    """
    return largest_magnitude(values) < math.inf


def largest_magnitude(values: Tensor) -> float:
    """The largest magnitude of float32, float16 or bfloat16 values, infinity where one is a NaN; 0 without values.

    Bits without the sign are in the order of their magnitudes, infinity behind all numbers and NaN behind that. So the
    largest is that of the positive values, which read as signed integers stand last, or that of the negative ones, which
    stand last as unsigned integers: two passes without a result of their own.
    """
    import torch

    if not values.numel():
        return 0.0
    signed, unsigned = ("int32", "uint32") if values.dtype == torch.float32 else ("int16", "uint16")
    bits = values.view(getattr(torch, signed)).numpy()
    mask = (1 << (8 * values.element_size() - 1)) - 1
    positive, last = int(bits.max()), int(bits.view(unsigned).max())
    largest = max(positive, last & mask if last > mask else 0)
    magnitude = float(torch.tensor([largest], dtype=getattr(torch, signed)).view(values.dtype))
    return math.inf if math.isnan(magnitude) else magnitude


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values.to(dtype)``; from bfloat16 to float16 through float32, which is exact on the way and six times faster."""
    import torch

    return values.float().to(dtype) if {values.dtype, dtype} == {torch.bfloat16, torch.float16} else values.to(dtype)
