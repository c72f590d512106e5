"""XVERSE-V's tiling against an independent statement and the table of the published processor."""

from __future__ import annotations

from decimal import ROUND_HALF_DOWN, Decimal
from pathlib import Path

import numpy as np
import pytest

from export.families.xverse_v.prompt import prompt
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise
from runtime_py.preprocess.xverse_v import Processor, tile_grid

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "xverse-v"
SETTINGS = {"tile": 14, "tile_rows": 4, "prompt": prompt("Human: {}\nAssistant: ", "<|endoftext|>", {}).to_json()}
LONGEST = {1: 9, 2: 4, 3: 3, 4: 2}
"""Longest side of a grid by its other side, when the other side is at most 4; from 5 on it is 1."""


def stated_grid(width: int, height: int, tile: int) -> tuple[int, int]:
    """Round half down, at least one; a grid that was not trained becomes the largest with its shorter side, or 3 x 3."""
    a, b = (max(1, int((Decimal(side) / tile).quantize(Decimal(1), rounding=ROUND_HALF_DOWN))) for side in (width, height))
    if b <= LONGEST.get(a, 1) and a <= 9:
        return a, b
    if 1 in (a, b):
        return (1, 9) if a == 1 else (9, 1)
    if a == 2 or b == 2:
        return (2, 4) if a == 2 else (4, 2)
    return 3, 3


def test_grid_agrees_with_the_rule_on_random_sizes():
    for width, height in np.random.default_rng(6).integers(1, 3000, size=(200, 2)).tolist():
        assert tile_grid(width, height, 224) == stated_grid(width, height, 224), (width, height)


def test_grid_agrees_with_the_published_table():
    table = np.load(GOLDEN / "inputs.npz")
    for (width, height), grid in zip(table["tiling224_image_wh"], table["tiling224_rows_cols"], strict=True):
        assert tile_grid(int(width), int(height), 224) == tuple(grid)


def test_a_small_picture_has_one_view_and_a_wide_one_is_squeezed_into_rows():
    processor = Processor(SETTINGS, None)
    (small,) = processor.images([np.full((14, 14, 3), 9, np.uint8)])
    assert small.vision["pixel_values"].shape == (1, 3, 14, 14)
    (wide,) = processor.images([np.full((14, 42, 3), 9, np.uint8)])
    assert wide.vision["pixel_values"].shape == (4, 3, 14, 14)
    assert tile_grid(42, 14, 14) == (3, 1)
    assert wide.rows == 16


def test_tiles_follow_the_whole_picture_row_by_row():
    shades = np.arange(10, 100, 10, dtype=np.uint8).reshape(3, 3)
    picture = np.repeat(shades.repeat(14, axis=0).repeat(14, axis=1)[..., None], 3, axis=2)
    assert tile_grid(42, 42, 14) == (3, 3)
    (made,) = Processor(SETTINGS, None).images([picture])
    views = made.vision["pixel_values"]
    assert views.shape == (10, 3, 14, 14)
    for view, shade in zip(views[1:], shades.reshape(-1), strict=True):
        np.testing.assert_array_equal(view, normalise(np.full((14, 14, 3), shade), CLIP_MEAN, CLIP_STD)[0])


class LetterTokenizer:
    """One id a character."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def token_id(self, token):
        return None


def test_turns_are_joined_by_the_end_symbol():
    messages = [Message("user", "what?", (0,)), Message("assistant", "a dog"), Message("user", "why?")]
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([np.zeros((14, 14, 3), np.uint8)])
    ids = processor.encode(messages, images)[0].tolist()
    text = "".join(chr(token) if token >= 0 else "@" for token in ids)
    assert text == "Human: @\nwhat?\nAssistant: a dog<|endoftext|>Human: why?\nAssistant: "


def test_two_pictures_are_refused():
    with pytest.raises(UsageError, match="2 pictures"):
        Processor(SETTINGS, None).images([np.zeros((14, 14, 3), np.uint8)] * 2)
