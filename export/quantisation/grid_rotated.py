"""The grid of rows that are turned before they are rounded (`export.quantisation.hadamard`), a scale a row.

Its codes are multiplied with inputs of 0 to twice `INPUT_STEPS`. An x86 processor without VNNI adds two such products of
neighbours in sixteen bits (`export.backends.onnx.int8_linear` has the source), so a row has a scale with which no two
neighbours need more. Inputs of 7 bits would leave scales alone, inputs of 8 would make them a third larger; between the two
a trained decoder has its least error (docs/results/many_rows.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.quantisation.grid_blockwise import BlockGrid
from export.quantisation.hadamard import turned

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.codes import Codes

INPUT_STEPS = 95
"""Steps of an input either way."""


@dataclass(frozen=True)
class RotatedGrid(BlockGrid):
    """Codes of turned rows; rows are turned back when they are read. What it fits and rounds is turned already.

    Attributes:
        steps: of an input either way, so that inputs are 0 to twice as many.
    """

    steps: int = INPUT_STEPS

    @property
    def most(self) -> int:
        """Of the sum of two neighbouring codes, either way."""
        return 32767 // (2 * self.steps)

    def quantise(self, rows: Tensor) -> Codes:
        return super().quantise(turned(rows.detach()))

    def dequantise(self, codes: Codes) -> Tensor:
        """float32 (rows, columns), of which a kernel that turns its inputs reads the turned form."""
        return turned(super().dequantise(codes))

    def _extremes(self, blocks: Tensor, low: Tensor, high: Tensor) -> None:
        """As far as the scale rule has to reach, so that neighbours add up to `most`, half a step of each included."""
        super()._extremes(blocks, low, high)
        even = blocks.shape[2] // 2 * 2
        pairs = (blocks[..., 0:even:2] + blocks[..., 1:even:2]).abs_().amax(2)
        high.copy_(pairs.mul_((self.zero - 0.5) / (self.most - 1)).maximum(high))
