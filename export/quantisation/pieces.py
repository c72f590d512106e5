"""Rounding in pieces that stay in the processor's cache, and codes taken from the bits of float16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 17
"""Weights that are quantised at a time, so that intermediate results stay in the processor's cache."""

INTEGER_HALF = 1024
"""From here to 2048 float16 holds every integer and no fraction: the low byte of 1024 + code is the code."""


def slices(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix, piece by piece."""
    step = max(1, PIECE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def write_codes(codes: Tensor, raised: Tensor) -> None:
    """Fill uint8 codes from float32 values of `INTEGER_HALF` more; a cast of float32 takes three times as long."""
    import torch

    codes.copy_(raised.half().view(torch.int16))
