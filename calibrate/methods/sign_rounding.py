"""Sign rounding: signed gradient descent on a rounding offset per weight and a clip per group.

In the manner of AutoRound (Cheng et al., arXiv 2309.05516): weights read back as ``read(round(w + v s, s), s)`` with
offsets v in [-1/2, 1/2] and s = clip * the scale that the clip search found. Both move by the sign of the gradient of the
layer's output error, in steps that shrink linearly to zero, straight through the rounding. The error and its gradient come
from the second moment, hence from all samples at once. The best state of every row is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import rounded, searched
from export.quantisation.codes import Codes, GroupParameters, joined

if TYPE_CHECKING:
    from torch import Tensor

TURNS = 200
MOMENTUM = 0.9
"""Of the gradients whose signs are taken; they come from all samples, so that nothing else averages them."""

LIMITS = (0.75, 1.25)
"""Range of the clip."""

ELEMENTS = 1 << 23
"""Weights tuned at a time."""


class SignRounding:
    """Rounding offsets and clips of one layer, tuned by the signs of its output error's gradient.

    Args:
        turns: gradient steps; their size falls linearly from 1 / turns to 0.
    """

    name: ClassVar[str] = "sign-rounding"
    title: ClassVar[str] = "rounding offsets and clips by signed gradient descent, in the manner of AutoRound"
    longer: ClassVar[bool] = True

    def __init__(self, turns: int = TURNS) -> None:
        self.turns = turns

    def run(self, layer: LayerProblem) -> Codes:
        """Codes of the layer, tuned a part of its rows at a time; nearest codes with searched clips without a moment."""
        parameters = searched(layer)
        if layer.moment is None:
            return layer.codes(rounded(layer, parameters), parameters)
        step = max(1, ELEMENTS // layer.weight.shape[1])
        rows = [slice(row, row + step) for row in range(0, len(layer.weight), step)]
        parts = [self._tuned(layer.some_rows(part.start, part.stop), parameters[part]) for part in rows]
        return joined(parts)

    def _tuned(self, layer: LayerProblem, first: GroupParameters) -> Codes:
        import torch

        assert layer.moment is not None
        matrix = layer.moment.matrix / max(layer.moment.count, 1)
        tuning = Tuning(layer, first)
        least = torch.full((len(layer.weight),), torch.inf)
        best_codes, best = torch.zeros_like(tuning.blocks), first
        for turn in range(self.turns):
            codes, now = tuning.rounded()
            change = tuning.weight(codes, now) - layer.weight
            slope = change @ matrix
            error = (slope * change).sum(1)
            better = error < least
            least = torch.where(better, error, least)
            best_codes = torch.where(better[:, None, None], codes, best_codes)
            best = GroupParameters(
                torch.where(better[:, None], now.scales, best.scales), torch.where(better[:, None], now.zeros, best.zeros)
            )
            tuning.step(slope, codes, now, (1 - turn / self.turns) / self.turns)
        return layer.codes(best_codes, best)


class Tuning:
    """Offsets and clips of one layer, and their steps against a gradient.

    Args:
        first: the scales that clips are relative to.
    """

    def __init__(self, layer: LayerProblem, first: GroupParameters) -> None:
        import torch

        self.layer, self.first, self.blocks = layer, first, layer.blocks(layer.weight)
        self.offsets = torch.zeros_like(self.blocks)
        self.clips = torch.ones(self.blocks.shape[:2])
        self._pull, self._pinch = torch.zeros_like(self.blocks), torch.zeros_like(self.clips)

    def rounded(self) -> tuple[Tensor, GroupParameters]:
        """Codes (rows, groups, group) and parameters (rows, groups) at present."""
        grid = self.layer.grid
        now = GroupParameters(grid.stored_scales(self.first.scales * self.clips), self.first.zeros)
        wide = now[..., None]
        return grid.round(self.blocks + self.offsets * wide.scales, wide), now

    def weight(self, codes: Tensor, parameters: GroupParameters) -> Tensor:
        """float32 (rows, columns) as codes and parameters read back."""
        return self.layer.flat(self.layer.grid.read(codes, parameters[..., None]))

    def step(self, slope: Tensor, codes: Tensor, parameters: GroupParameters, rate: float) -> None:
        """Move offsets and clips by the sign of a gradient (rows, columns) by the weight that `weight` gave."""
        import torch

        wide, slope = parameters[..., None], self.layer.blocks(slope)
        # a code that was clamped does not move with its weight or its offset
        inside = (codes > 0) & (codes < self.layer.grid.highest)
        # s dw'/ds: (q - z) s, less w where rounding is passed straight through
        by_scale = (codes - wide.zeros) * wide.scales - torch.where(inside, self.blocks, 0.0)
        self._pull.mul_(MOMENTUM).add_(slope * inside * wide.scales, alpha=1 - MOMENTUM)
        self._pinch.mul_(MOMENTUM).add_((slope * by_scale).sum(-1), alpha=1 - MOMENTUM)
        self.offsets.sub_(rate * self._pull.sign()).clamp_(-0.5, 0.5)
        self.clips.sub_(rate * self._pinch.sign()).clamp_(*LIMITS)
