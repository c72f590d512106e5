"""A finished demo that shows a family what its image features should be, where its decoder starts from that demo's.

A decoder that was taken over can answer when its rows look like those it knows; left to find such rows from answers alone,
it first forgets what it knew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.demo.dialogues import stacked
from export.demo.pictures import Scene, draw
from export.demo.recipes.base import grid_middles
from export.demo.reference import Reference
from parity_tests.laboratory.demo_training.batches import own_cells


class Guide:
    """The demo in ``folder``; its own processor sees every scene as a square picture."""

    def __init__(self, folder: Path) -> None:
        self.model = Reference.load(folder)
        recipe = self.model.recipe
        self.side, self.grid = recipe.side, recipe.rows

    @torch.no_grad()
    def rows(self, scenes: Sequence[Scene]) -> Tensor:
        """(scenes, cells of `grid`, width): its image features of each cell, the mean where a cell has several."""
        pictures = [self.model.processor.images([draw(scene, self.side, self.side)]) for scene in scenes]
        inputs = [piece for slices in pictures for piece in slices]
        _, rows = self.model.stages.see(stacked(inputs, "vision"), stacked(inputs, "connector"))
        rows = rows.reshape(len(scenes), -1, rows.shape[-1])
        places = self.model.recipe.places
        middles = places(inputs[0], (self.side, self.side)).image if places else grid_middles(*self.grid)
        known = torch.from_numpy(~np.isnan(middles[:, 0]))
        cells = own_cells(middles, self.grid)
        total = rows.new_zeros(len(scenes), math.prod(self.grid), rows.shape[-1]).index_add(1, cells, rows[:, known])
        return total / torch.bincount(cells, minlength=math.prod(self.grid)).clamp(min=1)[:, None]

    def loss(self, scenes: Sequence[Scene], rows: Tensor, middles: np.ndarray) -> Tensor:
        """How far ``rows`` (scenes, places, width), those of ``middles`` (..., 2) that are known, are from the guide's: in
        direction, and a little in length.
        """
        wanted = self.rows(scenes)[:, own_cells(middles, self.grid)]
        lengths, given = (value.square().mean(-1, keepdim=True).sqrt() + 1e-6 for value in (rows, wanted))
        apart = (rows / lengths - wanted / given).square().mean()
        return apart + 0.1 * (lengths / given).log().square().mean()
