"""The guide's rows are its own model's, and only other rows are far from them."""

from __future__ import annotations

import numpy as np
import torch

from export.demo.conftest import DELIVERED
from export.demo.dialogues import stacked
from export.demo.pictures import draw, sample_scene
from export.demo.recipes.base import NOWHERE, grid_middles
from parity_tests.laboratory.demo_training.guide import Guide

SCENES = [sample_scene(np.random.default_rng([9, number])) for number in range(3)]


def test_rows_are_those_of_the_model_cell_by_cell() -> None:
    guide = Guide(DELIVERED)
    rows = guide.rows(SCENES)
    assert rows.shape == (3, 9, 128)
    (inputs,) = guide.model.processor.images([draw(SCENES[1], guide.side, guide.side)])
    with torch.no_grad():
        _, alone = guide.model.stages.see(stacked([inputs], "vision"), stacked([inputs], "connector"))
    assert torch.allclose(rows[1], alone[0], atol=1e-4)


def test_own_rows_cost_nothing_and_rows_of_other_cells_or_lengths_something() -> None:
    guide = Guide(DELIVERED)
    rows, middles = guide.rows(SCENES), np.concatenate([NOWHERE, grid_middles(3, 3)])
    assert float(guide.loss(SCENES, rows, middles)) < 1e-9
    assert float(guide.loss(SCENES, rows.flip(1), middles)) > 0.05
    assert 0.01 < float(guide.loss(SCENES, 2 * rows, middles)) < 0.1


def test_finer_places_are_held_against_the_cell_they_lie_in() -> None:
    guide = Guide(DELIVERED)
    rows = guide.rows(SCENES).view(3, 3, 3, -1).repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(3, 36, -1)
    assert float(guide.loss(SCENES, rows, grid_middles(6, 6))) < 1e-9
