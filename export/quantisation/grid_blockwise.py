"""Blockwise integer grids of ONNX Runtime (MatMulNBits, GatherBlockQuantized) and TensorRT (DequantizeLinear).

A row is cut into blocks along the input; a block has one float16 scale s and reads back as ``(code - zero) * s``. How s is
chosen, with codes of ``bits`` bits, zero ``z = 2 ** (bits - 1)`` and m the block's value of largest magnitude:

=========  ==================  =================================================================================
rule       s                   why
=========  ==================  =================================================================================
SIGNED     m / -z              m itself is code 0, exactly; all codes are used; s may be negative
POSITIVE   abs(m) / (z - 1/2)  where a destination wants positive scales (TensorRT); m is half a step off at most
SPREAD     (max - min) / 15    with a zero point of its own; 0 is always a code
=========  ==================  =================================================================================

Codes are computed with the scale as it is stored. Squared error on Gaussian blocks of 32 in 4 bits, relative to SIGNED:
POSITIVE 1.22 (with abs(m) / 7 it would be 1.27), SPREAD 0.88; blocks of 128: SIGNED 1.44, SPREAD 1.37.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from export.quantisation.codes import Codes, GroupParameters
from export.quantisation.finite import all_finite
from export.quantisation.pieces import WHOLE, slices, write_codes
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


class ScaleRule(StrEnum):
    """How a block's scale is chosen."""

    SIGNED = "signed"
    POSITIVE = "positive"
    SPREAD = "spread"


@dataclass(frozen=True)
class BlockGrid:
    """One grid.

    Attributes:
        group: block length, or 0 when a whole row is one block.
        half: the product is rounded to float16, as a destination that computes in it does.
        wide_scales: scales are stored in float32 instead of float16.
    """

    name: str
    bits: int
    group: int
    rule: ScaleRule
    half: bool = False
    wide_scales: bool = False

    @property
    def alike(self) -> frozenset[str]:
        """No other grid has its codes."""
        return frozenset()

    def adopted(self, codes: Codes) -> Codes:
        """Nothing to change: see `alike`."""
        return codes

    @property
    def zero(self) -> int:
        """The constant zero point, which is also the code of padding."""
        return 1 << (self.bits - 1)

    @property
    def zero_points(self) -> bool:
        """Whether every block stores a zero point."""
        return self.rule is ScaleRule.SPREAD

    def quantise(self, rows: Tensor) -> Codes:
        """Round float (rows, columns) to codes (rows, groups * group); what is not float32 is widened.

        Raises:
            CheckpointError: a weight, or a block's scale, is not finite.
        """
        import torch

        count, columns = rows.shape
        group = self.group or columns
        groups = -(-columns // group)
        codes = torch.empty(count, groups, group, dtype=torch.uint8)
        low, high = torch.empty(count, groups), torch.empty(count, groups)
        for piece, blocks in self._blocks(rows, groups, group):
            self._extremes(blocks, low[piece], high[piece])
        scales, inverse = self._stored(low, high)
        zeros = (-low.clamp(max=0) * inverse).round_().clamp_(0, self.highest) if self.zero_points else None
        for piece, blocks in self._blocks(rows, groups, group):
            raised = blocks.mul_(inverse[piece, :, None])
            if zeros is None:
                raised.add_(WHOLE + self.zero)  # an even number, so that halves still go to the even code
            else:
                raised.add_(WHOLE).add_(zeros[piece, :, None])
            self._write(codes[piece], raised)
        return Codes(codes.view(count, groups * group), scales, None if zeros is None else zeros.to(torch.uint8))

    def _extremes(self, blocks: Tensor, low: Tensor, high: Tensor) -> None:
        """Fill ``low`` and ``high`` (rows, groups) with what the scales of blocks (rows, groups, group) are chosen by."""
        import torch

        torch.amin(blocks, 2, out=low)
        torch.amax(blocks, 2, out=high)

    def _write(self, codes: Tensor, raised: Tensor) -> None:
        """Codes between 0 and `highest` from values of `WHOLE` more."""
        import torch

        if self.bits < 8:
            # float16 is off by a factor of 2 at most, so the integers fit int8: clamping bytes takes a third of the time
            write_codes(codes, raised)
            codes.view(torch.int8).clamp_(0, self.highest)
        else:
            write_codes(codes, raised.clamp_(WHOLE, WHOLE + self.highest))

    def _blocks(self, rows: Tensor, groups: int, group: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows piece by piece as float32 (rows, groups, group), in the same memory every time.

        Zeros fill the last block. They change no block's range: the rules look at the largest magnitude, or count 0 in
        themselves.
        """
        import torch

        count, columns = rows.shape
        rows, room = rows.detach(), torch.empty(0)
        for piece in slices(count, columns):
            part = rows[piece]
            if not len(room):
                room = torch.empty(len(part), groups * group)
            wide = room[: len(part)]
            if columns < groups * group:
                wide[:, columns:] = 0
                wide[:, :columns].copy_(part)
            else:
                wide.copy_(part)
            yield piece, wide.view(-1, groups, group)

    def _stored(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scales as the file holds them, and what codes are computed with: 1 / scale, 0 where the scale is 0."""
        import torch

        # rounded to the file's dtype first, so that codes answer the scale that the kernel will see
        scales = self._scales(low, high).to(torch.float32 if self.wide_scales else torch.float16)
        if not all_finite(scales):
            raise CheckpointError(
                f"a block of weights has no finite scale on the grid {self.name}",
                "finite weights whose scale float16 can hold",
                "check the checkpoint for infinities and NaNs",
            )
        # a block of zeros, or of values whose scale underflows in float16, gets the zero point's code
        wide = scales.float()
        return scales, (1 / wide).masked_fill_(wide == 0, 0.0)

    def _scales(self, low: Tensor, high: Tensor) -> Tensor:
        import torch

        if self.rule is ScaleRule.SPREAD:
            return (high.clamp(min=0) - low.clamp(max=0)) / (2 * self.zero - 1)
        if self.rule is ScaleRule.POSITIVE:
            # half a step past the last code: the extreme is off by half a step at most, and all other codes are finer for it
            return torch.maximum(high, -low) / (self.zero - 0.5)
        # with its own sign: a positive extreme makes a negative scale and still becomes code 0. The sum's sign is that of
        # the larger magnitude, positive where they are equal; choosing with `torch.where` takes as long as a pass over all
        return torch.maximum(high, -low).copysign_(high + low).div_(-self.zero)

    def dequantise(self, codes: Codes) -> Tensor:
        """float32 (rows, groups * group) as the kernel reads it."""
        count, columns = codes.codes.shape
        groups = codes.scales.shape[1]
        zero = self.zero if codes.zero_points is None else codes.zero_points.float()[..., None]
        blocks = (codes.codes.view(count, groups, columns // groups).float() - zero) * codes.scales.float()[..., None]
        return (blocks.half().float() if self.half else blocks).view(count, columns)

    @property
    def highest(self) -> int:
        return 2 * self.zero - 1

    @property
    def negative_scales(self) -> bool:
        return self.rule is ScaleRule.SIGNED

    def fit(self, blocks: Tensor, factor: Tensor | float = 1.0) -> GroupParameters:
        """Scales (and zero points) of groups (..., group) whose range is ``factor`` times what they span, as stored."""
        import torch

        low, high = blocks.amin(-1), blocks.amax(-1)
        scales = self.stored_scales(self._scales(low, high) * factor)
        if not self.zero_points:
            return GroupParameters(scales, torch.full_like(scales, self.zero))
        zeros = -(low.clamp(max=0) * factor) * _inverse(scales)
        return GroupParameters(scales, zeros.round_().clamp_(0, self.highest))

    def stored_scales(self, scales: Tensor) -> Tensor:
        """Scales rounded to float16, or as they are with ``wide_scales``; float32 either way."""
        return scales.float() if self.wide_scales else scales.half().float()

    def round(self, values: Tensor, parameters: GroupParameters) -> Tensor:
        """The nearest codes, 0 to ``highest``, as float32; ties to even."""
        codes = (values * _inverse(parameters.scales)).round_()
        return codes.add_(parameters.zeros).clamp_(0, self.highest)

    def read(self, codes: Tensor, parameters: GroupParameters) -> Tensor:
        """``(code - zero) * scale`` in float32, rounded to float16 where the destination's product is."""
        values = (codes - parameters.zeros) * parameters.scales
        return values.half().float() if self.half else values

    def codes(self, codes: Tensor, parameters: GroupParameters) -> Codes:
        """Codes (rows, columns) with their parameters as a package stores them; padding gets the zero point's code."""
        import torch

        count, columns = codes.shape
        zeros = parameters.zeros.to(torch.uint8)
        groups = parameters.scales.shape[1]
        group = self.group or columns
        full = zeros.repeat_interleave(group, dim=1)
        full[:, :columns] = codes.to(torch.uint8)
        scales = parameters.scales if self.wide_scales else parameters.scales.half()
        return Codes(full.view(count, groups * group), scales, zeros if self.zero_points else None)


def _inverse(scales: Tensor) -> Tensor:
    """1 / scale, and 0 where the scale is 0."""
    import torch

    return torch.where(scales == 0, 0.0, 1 / scales)
