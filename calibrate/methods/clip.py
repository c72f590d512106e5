"""The search for group parameters: how much of a group's range to clip, and the scale that fits the codes best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibrate.codes import GroupParameters
from calibrate.grids import Grid
from calibrate.methods.base import LayerProblem

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = tuple(1.0 - 0.04 * step for step in range(14))
"""Shares of a group's range that are tried, from all of it down to about a half."""

REFITS = 2
ELEMENTS = 1 << 22
"""Weights searched at a time."""


def searched(layer: LayerProblem, refits: int = REFITS) -> GroupParameters:
    """Parameters (rows, groups) of least output error, taking every group by itself.

    The error of a group is e^T H e with the group's own block of the second moment (plain squares without one): exact but
    for what different groups do to each other.
    """
    import torch

    blocks = layer.blocks(layer.weight)
    weights = None if layer.moment is None else layer.moment.blocks(layer.group)
    step = max(1, ELEMENTS // max(layer.groups * layer.group, 1))
    parts = [_search(layer.grid, part, weights, refits) for part in blocks.split(step)]
    return GroupParameters(torch.cat([p.scales for p in parts]), torch.cat([p.zeros for p in parts]))


def rounded(layer: LayerProblem, parameters: GroupParameters) -> Tensor:
    """Nearest codes (rows, groups, group)."""
    return layer.grid.round(layer.blocks(layer.weight), parameters[..., None])


def _search(grid: Grid, blocks: Tensor, weights: Tensor | None, refits: int) -> GroupParameters:
    import torch

    best = grid.fit(blocks)
    codes = grid.round(blocks, best[..., None])
    least = _error(grid.read(codes, best[..., None]) - blocks, weights)

    def consider(parameters: GroupParameters) -> None:
        nonlocal best, least, codes
        trial = grid.round(blocks, parameters[..., None])
        error = _error(grid.read(trial, parameters[..., None]) - blocks, weights)
        better = error < least
        least = torch.where(better, error, least)
        best = GroupParameters(
            torch.where(better, parameters.scales, best.scales), torch.where(better, parameters.zeros, best.zeros)
        )
        codes = torch.where(better[..., None], trial, codes)

    for factor in _factors(grid):
        consider(grid.fit(blocks, factor))
    for _ in range(refits):
        consider(
            GroupParameters(grid.stored_scales(_refit(blocks, codes - best.zeros[..., None], best, weights)), best.zeros)
        )
    return best


def _factors(grid: Grid) -> list[float]:
    """`FACTORS`, and where scales may be negative those that put the odd code on the other side.

    A group's extreme is then met by the shorter side, whose end is (z - 1) / z as far.
    """
    found = list(FACTORS[1:])
    if grid.negative_scales:
        half = (grid.highest + 1) / 2
        found += [-factor * half / (half - 1) for factor in FACTORS]
    return found


def _refit(blocks: Tensor, steps: Tensor, best: GroupParameters, weights: Tensor | None) -> Tensor:
    """The scale (rows, groups) that brings ``scale * steps`` closest to the groups."""
    import torch

    weighted = steps if weights is None else torch.einsum("rgi,gij->rgj", steps, weights)
    power = (weighted * steps).sum(-1)
    return torch.where(power > 0, (weighted * blocks).sum(-1) / power, best.scales)


def _error(change: Tensor, weights: Tensor | None) -> Tensor:
    """(rows, groups) of groups (rows, groups, group)."""
    import torch

    weighted = change if weights is None else torch.einsum("rgi,gij->rgj", change, weights)
    return (weighted * change).sum(-1)
