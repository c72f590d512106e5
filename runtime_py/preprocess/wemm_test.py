"""WeMM's resize rules, buckets and windows against independent statements and the tables of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime_py.preprocess.pixels import HALF, normalise
from runtime_py.preprocess.wemm import Processor, buckets, target_size, window_index

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "wemm"
SIZES = np.random.default_rng(5).integers(1, 3000, size=(200, 2)).tolist()


def stated_size(width: int, height: int, shortest: int, longest: int, always: bool) -> tuple[int, int]:
    """The published rule, longer side first: scale it, floor the other, then raise both to the shortest edge."""
    long, short = max(width, height), min(width, height)
    if always or long > longest:
        ratio = width / height
        short = int(longest / ratio) if width >= height else int(longest * ratio)
        long = longest
    long, short = max(long, shortest), max(short, shortest)
    return (long, short) if width >= height else (short, long)


@pytest.mark.parametrize(("shortest", "longest", "always"), [(378, 980, False), (756, 1960, True)])
def test_target_size_agrees_with_the_rule_on_random_sizes(shortest, longest, always):
    for width, height in SIZES:
        assert target_size(width, height, shortest, longest, always) == stated_size(width, height, shortest, longest, always)


def test_target_size_agrees_with_the_published_tables():
    table = np.load(GOLDEN / "inputs.npz")
    for (width, height), small, large in zip(table["resize_wh"], table["resize_980_hw"], table["resize_2k_hw"], strict=True):
        assert target_size(int(width), int(height), 378, 980, False)[::-1] == tuple(small)
        assert target_size(int(width), int(height), 756, 1960, True)[::-1] == tuple(large)


def test_buckets_agree_with_the_published_tables():
    table = np.load(GOLDEN / "inputs.npz")
    names = [name for name in table.files if name.startswith("buckets")]
    assert len(names) > 10
    for name in names:
        side, count = name.removeprefix("buckets").split("_n")
        np.testing.assert_array_equal(buckets(int(count), int(side)), table[name], err_msg=name)


@pytest.mark.parametrize("side", [70, 140])
def test_buckets_agree_with_torch_for_every_count(side: int):
    """The published expressions; the count is a tensor there, so its reciprocal is a float32."""
    torch = pytest.importorskip("torch")
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    for count in range(1, side + 1):
        places = torch.arange(0, 1 - 1e-6, 1 / torch.tensor(count))
        expected = torch.bucketize(places, boundaries, right=True).numpy()
        np.testing.assert_array_equal(buckets(count, side), expected, err_msg=str(count))


@pytest.mark.parametrize(("rows", "columns", "kernel"), [(7, 11, 2), (1, 1, 4), (8, 6, 2), (5, 9, 4)])
def test_windows_are_those_of_an_edge_padded_grid(rows, columns, kernel):
    grid = np.arange(rows * columns).reshape(rows, columns)
    padded = np.pad(grid, ((0, -rows % kernel), (0, -columns % kernel)), mode="edge")
    expected = [
        padded[r : r + kernel, c : c + kernel].reshape(-1)
        for r in range(0, padded.shape[0], kernel)
        for c in range(0, padded.shape[1], kernel)
    ]
    np.testing.assert_array_equal(window_index(rows, columns, kernel), expected)


def test_a_picture_is_padded_behind_its_last_row_and_column():
    settings = {
        "patch_size": 14, "kernel": 2, "side": 70, "shortest_edge": 20, "longest_edge": 50, "resize_rule": "980",
    }  # fmt: skip
    picture = np.random.default_rng(2).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    (made,) = Processor(settings, None).images([picture])
    pixels = made.vision["pixel_values"]
    assert pixels.shape == (1, 3, 42, 56) and made.rows == 2 * 2 + 2
    np.testing.assert_array_equal(pixels[:, :, :30, :45], normalise(picture, HALF, HALF))
    assert not pixels[:, :, 30:].any() and not pixels[:, :, :, 45:].any()
    places = [70 * row + column for row in buckets(3, 70) for column in buckets(4, 70)]
    assert made.vision["patch_positions"].reshape(-1).tolist() == places
    np.testing.assert_array_equal(made.connector["window_index"], window_index(3, 4, 2))


def test_a_call_without_image_rows_has_no_delta():
    arranged = Processor({}, None).arrange({"image_mask": np.zeros((1, 3), dtype=bool)})
    assert len(arranged["image_index"]) == 0
    assert arranged["delta_index"].tolist() == [0, 0, 0]
