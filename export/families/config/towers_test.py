"""Sizes of vision towers: whole patches where pictures have the size itself, and bounds that no tower is beyond."""

from __future__ import annotations

import pytest

from export.families.config.section import Section
from export.families.config.towers import MOST_GRID, square_grid
from runtime_py.errors import CheckpointError


def grid(image_size: int, patch_size: int, fixed: bool) -> int:
    return square_grid(Section({"image_size": image_size, "patch_size": patch_size}), fixed)


@pytest.mark.parametrize(
    ("size", "fixed", "side"), [(28, True, 2), (14, True, 1), (30, False, 2), (14 * MOST_GRID, True, MOST_GRID)]
)
def test_a_side_is_counted_in_whole_patches(size: int, fixed: bool, side: int) -> None:
    assert grid(size, 14, fixed) == side


@pytest.mark.parametrize(("size", "fixed"), [(13, False), (13, True), (30, True), (14 * (MOST_GRID + 1), False)])
def test_a_side_without_a_patch_or_with_a_rest_is_refused(size: int, fixed: bool) -> None:
    with pytest.raises(CheckpointError, match="image_size"):
        grid(size, 14, fixed)
