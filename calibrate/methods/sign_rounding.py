"""Sign rounding: signed gradient descent on a rounding offset per weight and a clip per group.

In the manner of AutoRound (Cheng et al., arXiv 2309.05516): weights read back as ``read(round(w + v s, s), s)`` with
offsets v in [-1/2, 1/2] and s = clip * the scale that the clip search found. Both move by the sign of the gradient of the
layer's output error, in steps that shrink linearly to zero, straight through the rounding. The error and its gradient come
from the second moment, hence from all samples at once. The best state of every row is kept.
"""

from __future__ import annotations

from typing import ClassVar

from calibrate.codes import Codes, GroupParameters, joined
from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import rounded, searched

TURNS = 200
MOMENTUM = 0.9
"""Of the gradients whose signs are taken; they come from all samples, so that nothing else averages them."""

LIMITS = (0.75, 1.25)
"""Range of the clip."""

ELEMENTS = 1 << 23
"""Weights tuned at a time."""


class SignRounding:
    """See the module."""

    name: ClassVar[str] = "sign-rounding"
    title: ClassVar[str] = "rounding offsets and clips by signed gradient descent, in the manner of AutoRound"
    needs_moment: ClassVar[bool] = True

    def __init__(self, turns: int = TURNS) -> None:
        self.turns = turns

    def run(self, layer: LayerProblem) -> Codes:
        """See Method.run; plain clipped rounding for a layer that no sample reached."""
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
        grid, blocks = layer.grid, layer.blocks(layer.weight)
        matrix = layer.moment.matrix / max(layer.moment.count, 1)
        offsets = torch.zeros_like(blocks)
        clips = torch.ones(blocks.shape[:2])
        pull, pinch = torch.zeros_like(blocks), torch.zeros_like(clips)
        least = torch.full((len(blocks),), torch.inf)
        best_codes, best = torch.zeros_like(blocks), first
        for turn in range(self.turns):
            now = GroupParameters(grid.stored_scales(first.scales * clips), first.zeros)
            wide = now[..., None]
            codes = grid.round(blocks + offsets * wide.scales, wide)
            change = layer.flat(grid.read(codes, wide)) - layer.weight
            slope = change @ matrix
            error = (slope * change).sum(1)
            better = error < least
            least = torch.where(better, error, least)
            best_codes = torch.where(better[:, None, None], codes, best_codes)
            best = GroupParameters(
                torch.where(better[:, None], now.scales, best.scales), torch.where(better[:, None], now.zeros, best.zeros)
            )
            rate = (1 - turn / self.turns) / self.turns
            slope = layer.blocks(slope)
            inside = (codes > 0) & (codes < grid.highest)
            by_scale = (codes - wide.zeros) * wide.scales - torch.where(inside, blocks, 0.0)
            pull.mul_(MOMENTUM).add_(slope * inside * wide.scales, alpha=1 - MOMENTUM)
            pinch.mul_(MOMENTUM).add_((slope * by_scale).sum(-1), alpha=1 - MOMENTUM)
            offsets.sub_(rate * pull.sign()).clamp_(-0.5, 0.5)
            clips.sub_(rate * pinch.sign()).clamp_(*LIMITS)
        return layer.codes(best_codes, best)
