"""Fixtures of the demo tests: an untrained model in the published layout, and the delivered checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.demo.model import initial_tensors
from export.demo.published import write_checkpoint
from export.demo.recipes.minicpm_v import RECIPE
from export.demo.reference import Reference
from export.families.registry import families

DELIVERED = Path(__file__).parent / "checkpoints" / "minicpm-v"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    write_checkpoint(folder, RECIPE, initial_tensors(RECIPE, families()[RECIPE.family], 3)[1])
    return folder


@pytest.fixture(scope="session")
def delivered() -> Reference:
    return Reference.load(DELIVERED)
