"""Rounding to four bits: on the grids of the packages for evaluation, with straight-through gradients for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from export.quantisation.grids import GRIDS
from export.quantisation.spec import LayerShape

GROUP = 32
LANGUAGE_ROLES = frozenset({"decoder", "head", "embedding"})
ALL_ROLES = LANGUAGE_ROLES | {"connector", "vision"}


def mlc_rounded(weight: Tensor) -> Tensor:
    """q4f16_1 without its float16 steps: groups of 32 along the input axis, scale max|w| / 7, codes 0 to 14 around 7."""
    groups = _grouped(weight)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    codes = torch.where(scale > 0, torch.round(groups / scale), 0.0).clamp(-7, 7)
    return _flat(codes * scale, weight)


def on_grid(name: str) -> Callable[[Tensor], Tensor]:
    """Rounding to a grid of export.quantisation.grids and back, integer for integer what a package holds."""
    grid = GRIDS[name]
    return lambda weight: grid.dequantise(grid.quantise(weight.float()))[:, : weight.shape[1]]


def straight_through(weight: Tensor) -> Tensor:
    """`mlc_rounded` forwards, the identity backwards."""
    return weight + (mlc_rounded(weight.detach()) - weight.detach())


def matrices(layers: Iterable[LayerShape], roles: frozenset[str]) -> frozenset[str]:
    """Canonical parameter names of the layers with one of ``roles``."""
    return frozenset(f"{layer.name}.weight" for layer in layers if layer.role in roles)


def _grouped(weight: Tensor) -> Tensor:
    """(rows, groups, 32); a tail group is filled with zeros, which never change its statistics."""
    padded = F.pad(weight.float(), (0, -weight.shape[1] % GROUP))
    return padded.view(weight.shape[0], -1, GROUP)


def _flat(groups: Tensor, like: Tensor) -> Tensor:
    return groups.reshape(like.shape[0], -1)[:, : like.shape[1]]
