"""Batches of pictures whose features have one shape though the pictures have not, and what lies where in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from export.demo.pictures import COLOURS, KINDS, Scene, sample_size
from export.demo.recipes.base import Places, Recipe

COLOUR_NAMES = tuple(COLOURS)
FEWEST = 4
"""Pictures in a batch, however many rows each has."""

Sized = tuple[Scene, tuple[int, int]]
"""A scene and the (width, height) it is painted at."""


def sizes_of_one_shape(rng: np.random.Generator, recipe: Recipe, count: int) -> list[tuple[int, int]]:
    """Sizes whose features have one shape; as many fewer as each has more image rows than a square picture."""
    assert recipe.shape_of is not None
    sizes = [sample_size(rng, recipe.side)]
    shape, square = recipe.shape_of(*sizes[0]), recipe.shape_of(recipe.side, recipe.side)
    count = max(FEWEST, min(count, count * square[0] // shape[0]))
    while len(sizes) < count:
        size = sample_size(rng, recipe.side)
        if recipe.shape_of(*size) == shape:
            sizes.append(size)
    return sizes


def place_targets(scene: Scene, size: tuple[int, int], middles: np.ndarray) -> np.ndarray:
    """Kind and colour (0: nothing) at each of (places, 2) middles: of what covers it or lies nearest to it; int64."""
    targets = np.zeros((len(middles), 2), dtype=np.int64)
    for item in scene.items:
        reach = np.array([item.radius * min(size) / length for length in size])
        away = np.abs(middles - (item.x, item.y))
        covered = np.asarray((away < reach).all(1))
        covered[(away**2).sum(1).argmin()] = True
        targets[covered] = (KINDS.index(item.kind) + 1, COLOUR_NAMES.index(item.colour) + 1)
    return targets


def with_places(features: Tensor, middles: np.ndarray, pictures: int) -> Tensor:
    """The rows that lie somewhere: (pictures, places, width) of features with all views of a picture one after another."""
    known = torch.from_numpy(~np.isnan(middles[:, 0]))
    return features.reshape(pictures, len(middles), -1)[:, known]


def probe_rows(scenes: Sequence[Sized], places: Places, features: Tensor, rows: Tensor) -> list[Tensor]:
    """Vision rows, image rows, and int64 (pictures, places, 2) targets of either."""
    parts = ((features, places.vision), (rows, places.image))
    held = [with_places(part, middles, len(scenes)) for part, middles in parts]
    targets = [
        torch.from_numpy(np.stack([place_targets(scene, size, middles[~np.isnan(middles[:, 0])]) for scene, size in scenes]))
        for _, middles in parts
    ]
    return [*held, *targets]


def own_cells(middles: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """int64 (places,): the cell of a ``grid`` of rows and columns in which each place lies."""
    known = middles[~np.isnan(middles[:, 0])]
    rows, columns = grid
    cells = np.minimum((known[:, 1] * rows).astype(np.int64), rows - 1) * columns
    return torch.from_numpy(cells + np.minimum((known[:, 0] * columns).astype(np.int64), columns - 1))
