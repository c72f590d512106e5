"""Rounding in pieces that stay in the processor's cache, and codes taken from the bits of float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 17
"""Weights that are quantised at a time, so that intermediate results stay in the processor's cache."""

WHOLE = 3 << 22
"""From 2 ** 23 to 2 ** 24 float32 holds every integer and no fraction: what this is added to is rounded, a half to the even
integer as `torch.round` does, and the low byte of the sum's bits is that of the integer."""


def slices(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix, piece by piece."""
    step = max(1, PIECE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def write_codes(codes: Tensor, raised: Tensor) -> None:
    """Fill uint8 codes from float32 values of `WHOLE` more; a cast of float32 takes seven times as long."""
    import torch

    codes.copy_(raised.view(torch.int32))
