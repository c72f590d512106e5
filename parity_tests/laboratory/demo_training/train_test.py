"""Training is repeatable, resumable, lowers the loss, and writes what the family reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from export.demo.pictures import COLOURS, KINDS, Item, Scene
from export.demo.published import LIMIT, write_checkpoint
from export.demo.recipes.minicpm_v import RECIPE
from parity_tests.laboratory.demo_training.plan import Plan
from parity_tests.laboratory.demo_training.probes import probe_targets
from parity_tests.laboratory.demo_training.train import train
from parity_tests.laboratory.demo_training.trainer import Trainer

TINY = Plan(seeing=2, answering=3, seen_pictures=3, asked_pictures=2, warm=1, easy=2)


def trainer(folder: Path) -> Trainer:
    return Trainer(RECIPE, TINY, folder)


def test_equal_plans_give_equal_weights_and_a_resumed_run_the_same(untrained: Path, tmp_path: Path) -> None:
    whole, first = trainer(untrained), trainer(untrained)
    losses = [whole.step() for _ in range(TINY.steps)]
    assert losses[0]["answers"] == 0.0 < losses[-1]["answers"]
    for _ in range(3):
        first.step()
    torch.save(first.state(), tmp_path / "state.pt")
    second = trainer(untrained)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step() for _ in range(2)] == losses[3:]
    assert all(torch.equal(value, second.tensors[name]) for name, value in whole.tensors.items())
    assert not torch.equal(whole.tensors["llm.lm_head.weight"], trainer(untrained).tensors["llm.lm_head.weight"])


def test_a_few_steps_lower_every_loss(untrained: Path) -> None:
    plan = Plan(seeing=0, answering=12, asked_pictures=4, warm=1, easy=100)
    run = Trainer(RECIPE, plan, untrained)
    losses = [run.step() for _ in range(plan.steps)]
    for name in ("answers", "patches", "rows"):
        assert np.mean([loss[name] for loss in losses[-3:]]) < 0.9 * np.mean([loss[name] for loss in losses[:3]])


def test_the_rate_rises_stays_and_falls_in_each_round() -> None:
    plan = Plan(seeing=50, answering=50, warm=10, falling_share=0.5, again=100, again_rate=0.25)
    rates = [plan.rate(step) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert all(a > b for a, b in pairwise(rates[51:100]))
    assert rates[99] < 0.02
    assert rates[100] == pytest.approx(0.025)
    assert rates[109:141] == [0.25] * 32
    assert all(a > b for a, b in pairwise(rates[141:]))


def test_three_of_four_steps_are_rounded_at_the_end_of_each_round() -> None:
    plan = Plan(seeing=50, answering=50, rounded_share=0.4, again=100)
    assert not any(plan.rounds(step) for step in [*range(81), *range(100, 161)])
    assert [step for step in range(81, 100) if not plan.rounds(step)] == [84, 88, 92, 96]
    assert [step for step in range(161, 200) if not plan.rounds(step)] == list(range(164, 200, 4))


def test_probe_targets_name_what_lies_where() -> None:
    item = Item("star", "blue", (0, 0, 255), 0.84, 0.16, 0.125, 0.0)
    scene = Scene((item,), (255, 255, 255), 0.0, 0)
    target = [KINDS.index("star") + 1, list(COLOURS).index("blue") + 1]
    cells = probe_targets(scene, (112, 112), (3, 3))
    assert cells.tolist() == [target if cell == 2 else [0, 0] for cell in range(9)]
    patches = probe_targets(scene, (112, 112), (8, 8))
    held = {divmod(int(place), 8) for place in np.flatnonzero(patches[:, 0])}
    assert held == {(row, column) for row in (0, 1) for column in (6, 7)}
    assert patches[7].tolist() == target


def test_a_run_writes_a_checkpoint_the_family_opens(tmp_path: Path) -> None:
    train(RECIPE, TINY, tmp_path / "out", tmp_path / "state.pt", report_every=100, held_out_pictures=4)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {*RECIPE.side_files(), "model.safetensors"}
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < LIMIT
    assert torch.load(tmp_path / "state.pt", weights_only=True)["done"] == TINY.steps


def test_a_checkpoint_over_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than"):
        write_checkpoint(tmp_path / "out", RECIPE, {"x": torch.zeros(LIMIT // 2)})
    assert not (tmp_path / "out").exists()
