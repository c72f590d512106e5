"""Rows turned by Hadamard matrices, block by block, which spreads a value that is many times the others over its block.

With H = H^T and H H = 1, ``x W^T`` is ``(x H) (W H)^T``, so that a layer whose inputs and matrix are both turned gives what
it gave. One scale then serves all values of a row: one that was many times the others is shared by its whole block.

Blocks are powers of four, in which the entries of H, +-1 / sqrt(block), are exact in binary; sums are written in one order,
so that equal rows give equal bits on every machine.

Source: Ashkboos et al., QuaRot (2024), which turns the inputs of a language model's layers so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from export.quantisation.pieces import slices

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 64
"""Longest block; a value costs as many products to turn as its block is long."""


def block_of(columns: int) -> int:
    """The longest block of which a row of ``columns`` is made: 64, 16, 4, or 1 for rows that are not turned."""
    return next(block for block in (LARGEST, 16, 4, 1) if columns % block == 0)


def matrix(block: int) -> list[float]:
    """H, row by row: ``block`` times ``block`` numbers."""
    step = 1 / math.isqrt(block)
    return [-step if (row & column).bit_count() % 2 else step for row in range(block) for column in range(block)]


def turned(rows: Tensor) -> Tensor:
    """Float32 (rows, columns) times H, block by block; turning twice gives the rows again, but for roundings."""
    import torch

    count, columns = rows.shape
    block, out = block_of(columns), torch.empty(count, columns)
    room: list[Tensor] = []
    for piece in slices(count, columns):
        part = rows[piece].reshape(-1, block).t()
        if not room:
            room = [torch.empty(part.shape), torch.empty(part.shape)]
        # (block, blocks): what is added lies in whole rows. Every step adds and subtracts neighbours, sums in front
        values, others = (each[:, : part.shape[1]] for each in room)
        values.copy_(part)
        for _ in range(block.bit_length() - 1):
            torch.add(values[0::2], values[1::2], out=others[: block // 2])
            torch.sub(values[0::2], values[1::2], out=others[block // 2 :])
            values, others = others, values
        torch.mul(values.t(), 1 / math.isqrt(block), out=out[piece].view(-1, block))
    return out
