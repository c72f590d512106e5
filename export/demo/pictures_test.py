"""Drawn scenes are what their description says."""

from __future__ import annotations

import numpy as np
import pytest

from export.demo.pictures import CELLS, COLOURS, DIGITS, SHAPES, Item, Scene, draw, sample_scene, sample_size


def scenes(count: int) -> list[Scene]:
    return [sample_scene(np.random.default_rng([7, number])) for number in range(count)]


def test_equal_seeds_draw_equal_pictures() -> None:
    first, second = (draw(sample_scene(np.random.default_rng(3)), 150, 112) for _ in range(2))
    assert first.shape == (112, 150, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)


def test_every_item_is_painted_in_its_colour_and_cell() -> None:
    for scene in scenes(60):
        for size in ((112, 112), (300, 200)):
            width, height = size
            pixels = draw(Scene(scene.items, scene.background, 0.0, 0), *size).astype(int)
            for item in scene.items:
                painted = np.abs(pixels - np.array(item.rgb)).max(axis=2) < 12
                rows, columns = np.nonzero(painted)
                near = np.hypot(columns + 0.5 - item.x * width, rows + 0.5 - item.y * height)
                mine = near < 1.8 * item.radius * min(size)
                assert mine.sum() > 10, item
                middle = (int(3 * rows[mine].mean() / height), int(3 * columns[mine].mean() / width))
                if len(scene.items) > 1 or not item.is_digit:
                    assert middle[0] * 3 + middle[1] == item.cell, item


def test_items_have_cells_of_their_own_in_reading_order() -> None:
    for scene in scenes(200):
        cells = [item.cell for item in scene.items]
        assert cells == sorted(set(cells))


def test_scenes_cover_everything_that_is_asked_about() -> None:
    drawn = scenes(600)
    items = [item for scene in drawn for item in scene.items]
    assert {item.kind for item in items} == {*SHAPES, *DIGITS}
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.cell for item in items if not item.is_digit} == set(range(len(CELLS)))
    assert {len(scene.shapes) for scene in drawn} == {0, 1, 2, 3, 4}
    assert any(scene.digit and scene.shapes for scene in drawn)


def test_black_is_never_drawn_on_a_dark_background() -> None:
    assert not [s for s in scenes(600) if max(s.background) < 90 and any(i.colour == "black" for i in s.items)]


def test_sizes_are_square_half_the_time_and_never_extreme() -> None:
    rng = np.random.default_rng(0)
    sizes = [sample_size(rng, 112) for _ in range(400)]
    square = sum(size == (112, 112) for size in sizes)
    assert 160 < square < 240
    assert all(min(size) >= 70 and max(size) <= 560 and max(size) / min(size) < 1.55 for size in sizes)


@pytest.mark.parametrize("digit", DIGITS)
def test_digits_look_different_from_each_other(digit: str) -> None:
    def painted(kind: str, pixel_font: bool) -> np.ndarray:
        item = Item(kind, "black", (0, 0, 0), 0.5, 0.5, 0.3, 0.0, pixel_font)
        return draw(Scene((item,), (255, 255, 255), 0.0, 0), 112, 112).astype(int)

    for pixel_font in (False, True):
        mine = painted(digit, pixel_font)
        assert (mine < 60).mean() > 0.01
        assert all(np.abs(mine - painted(other, pixel_font)).mean() > 2 for other in DIGITS if other != digit)
