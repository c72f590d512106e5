"""The search for group parameters: how much of a group's range to clip, and the scale that fits the codes best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrate.methods.base import LayerProblem
from export.quantisation.codes import GroupParameters
from export.quantisation.grids import Grid

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = tuple(1.0 - 0.04 * step for step in range(14))
"""Shares of a group's range that are tried, from all of it down to about a half."""

COARSE = FACTORS[::2]
"""The same, half as many, for methods that make up for the rest afterwards."""

REFITS = 2
ELEMENTS = 1 << 18
"""Weights searched at a time: few enough for the processor's cache, enough that calls cost little beside the work."""


def searched(layer: LayerProblem, refits: int = REFITS, coarse: bool = False) -> GroupParameters:
    """Parameters (rows, groups) of least output error, taking every group by itself.

    The error of a group is e^T H e with the group's own block of the second moment (plain squares without one): exact but
    for what different groups do to each other. ``coarse`` takes the block's diagonal and half of the factors.
    """
    import torch

    blocks = layer.blocks(layer.weight)
    weights = None
    if layer.moment is not None:
        weights = layer.blocks(layer.moment.diagonal[None])[0] if coarse else layer.moment.blocks(layer.group)
    factors = _factors(layer.grid, COARSE if coarse else FACTORS)
    step = max(1, ELEMENTS // max(layer.groups * layer.group, 1))
    parts = [_search(layer.grid, part, weights, factors, refits) for part in blocks.split(step)]
    return GroupParameters(torch.cat([p.scales for p in parts]), torch.cat([p.zeros for p in parts]))


def rounded(layer: LayerProblem, parameters: GroupParameters) -> Tensor:
    """Nearest codes (rows, groups, group)."""
    return layer.grid.round(layer.blocks(layer.weight), parameters[..., None])


def _search(grid: Grid, blocks: Tensor, weights: Tensor | None, factors: Sequence[float], refits: int) -> GroupParameters:
    """Of groups (rows, groups, group); inside, the place in the group comes first, so that parameters broadcast in rows."""
    import torch

    # `Grid.fit` looks at a group's range alone, so that two values stand for all of it
    extremes = torch.stack([blocks.amin(-1), blocks.amax(-1)], dim=-1)
    values = blocks.permute(2, 0, 1).contiguous()
    best = grid.fit(extremes)
    least = _error(grid.read(grid.round(values, best), best).sub_(values), weights)

    def consider(parameters: GroupParameters) -> None:
        nonlocal best, least
        change = grid.read(grid.round(values, parameters), parameters).sub_(values)
        error = _error(change, weights)
        # false for NaN, so that parameters that are no numbers never win
        better = error < least
        least = torch.where(better, error, least)
        best = GroupParameters(
            torch.where(better, parameters.scales, best.scales), torch.where(better, parameters.zeros, best.zeros)
        )

    for factor in factors:
        consider(grid.fit(extremes, factor))
    for _ in range(refits):
        steps = grid.round(values, best).sub_(best.zeros)
        consider(GroupParameters(grid.stored_scales(_refit(values, steps, best, weights)), best.zeros))
    return best


def _factors(grid: Grid, shares: Sequence[float]) -> list[float]:
    """Shares below 1, and where scales may be negative those that put the odd code on the other side.

    A group's extreme is then met by the shorter side, whose end is (z - 1) / z as far.
    """
    factors = [share for share in shares if share != 1.0]
    if grid.negative_scales:
        half = (grid.highest + 1) / 2
        factors += [-share * half / (half - 1) for share in shares]
    return factors


def _refit(values: Tensor, steps: Tensor, best: GroupParameters, weights: Tensor | None) -> Tensor:
    """The scale (rows, groups) that brings ``scale * steps`` closest to the values (group, rows, groups)."""
    import torch

    weighted = _weighted(steps, weights)
    power = (weighted * steps).sum(0)
    # a group whose codes all are the zero point says nothing about its scale
    return torch.where(power > 0, (weighted * values).sum(0) / power, best.scales)


def _error(change: Tensor, weights: Tensor | None) -> Tensor:
    """(rows, groups) of changes (group, rows, groups), which are overwritten where that saves a copy."""
    if weights is None:
        return change.square_().sum(0)
    if weights.ndim == 2:
        return change.square_().mul_(weights.T[:, None]).sum(0)
    return _weighted(change, weights).mul_(change).sum(0)


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """(group, rows, groups) times the second moment's blocks (groups, group, group), or its diagonal (groups, group)."""
    import torch

    if weights is None:
        return values.clone()
    return values * weights.T[:, None] if weights.ndim == 2 else torch.einsum("irg,gij->jrg", values, weights)
