"""HQQ: group parameters by half-quadratic splitting, from the weights alone.

Minimises |w - q|^p with p < 1, under which a few large errors cost less than many small ones. Each turn shrinks the
error towards zero, ``e = shrink(w - q)``, and fits the parameters to ``w - e`` by least squares, with the splitting
weight growing. Source: Badri and Shaji, https://mobiusml.github.io/hqq_blog/ and dropbox/hqq, hqq/core/optimize.py, which
moves a fractional zero point; destinations here store whole zero points or none, so the scale is fitted too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from calibrate.methods.base import LayerProblem
from export.quantisation.codes import Codes, GroupParameters

if TYPE_CHECKING:
    from torch import Tensor

NORM = 0.7  # lp_norm, as published
TURNS = 20  # iters, as published
FIRST_WEIGHT, GROWTH = 10.0, 1.05


class Hqq:
    """Parameters of least |w - q|^0.7, found by half-quadratic splitting; samples are not looked at."""

    name: ClassVar[str] = "hqq"
    title: ClassVar[str] = "HQQ, from the weights alone"
    longer: ClassVar[bool] = True

    def run(self, layer: LayerProblem) -> Codes:
        """Codes of the layer on its grid; of all turns, every group keeps the parameters of least error."""
        import torch

        grid, blocks = layer.grid, layer.blocks(layer.weight)
        best = grid.fit(blocks)
        codes = grid.round(blocks, best[..., None])
        least = _norm(blocks - grid.read(codes, best[..., None]))
        now, weight = best, FIRST_WEIGHT
        # errors in units of the group's largest value, so that NORM and the weights mean the same in every group
        unit = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        for _ in range(TURNS):
            lost = (blocks - grid.read(grid.round(blocks, now[..., None]), now[..., None])) / unit
            now = _fitted(layer, blocks, blocks - unit * _shrunk(lost, weight), now)
            weight *= GROWTH
            trial = grid.round(blocks, now[..., None])
            error = _norm(blocks - grid.read(trial, now[..., None]))
            better = error < least
            least = torch.where(better, error, least)
            best = GroupParameters(torch.where(better, now.scales, best.scales), torch.where(better, now.zeros, best.zeros))
        return layer.codes(grid.round(blocks, best[..., None]), best)


def _fitted(layer: LayerProblem, blocks: Tensor, wanted: Tensor, now: GroupParameters) -> GroupParameters:
    """Scale, and zero point where one is stored, by least squares for the codes of the present parameters."""
    import torch

    grid = layer.grid
    codes = grid.round(blocks, now[..., None])
    zeros = now.zeros
    if grid.zero_points:
        inverse = torch.where(now.scales == 0, 0.0, 1 / now.scales)
        zeros = (codes - wanted * inverse[..., None]).mean(-1).round_().clamp_(0, grid.highest)
    steps = codes - zeros[..., None]
    power = steps.square().sum(-1)
    scales = torch.where(power > 0, (steps * wanted).sum(-1) / power, now.scales)
    return GroupParameters(grid.stored_scales(scales), zeros)


def _shrunk(values: Tensor, weight: float) -> Tensor:
    """The proximal step of |x|^p: sign(x) max(|x| - |x|^(p - 1) / weight, 0)."""
    size = values.abs()
    # a negative power of 0 is infinite
    return values.sign() * (size - size.clamp_min(1e-8).pow(NORM - 1) / weight).clamp_min_(0)


def _norm(change: Tensor) -> Tensor:
    return change.abs().pow(NORM).sum(-1)
