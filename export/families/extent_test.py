"""What processors predict of a picture's size against what they make of it, for every published checkpoint."""

from __future__ import annotations

import tracemalloc
from typing import Protocol, cast

import numpy as np
import pytest

from export.families.base import Family
from export.families.published import variants
from export.families.registry import families
from export.source.tensor_source import EmptySource
from runtime_py.errors import ImageError
from runtime_py.preprocess.base import Processor
from runtime_py.preprocess.extent import PATCH_BYTES, PredictsExtent, check_extent
from runtime_py.preprocess.pictures import open_picture

PUBLISHED = [
    pytest.param(family, hub_id, id=hub_id)
    for family in families().values()
    for hub_id in variants(family.published_table())
]
SIZES = [(448, 448), (1200, 700), (300, 1900), (3000, 40), (4000, 1), (1, 3000)]
CONTEXT = 1 << 20


class Weighing(Processor, PredictsExtent, Protocol):
    """A processor that predicts."""


def processor_of(family: Family, hub_id: str) -> Weighing:
    """The processor of a published checkpoint."""
    made = family.make_processor(family.spec(family.published_config(hub_id, "full"), EmptySource()))
    assert isinstance(made, PredictsExtent)
    return cast("Weighing", made)


@pytest.mark.parametrize(("family", "hub_id"), PUBLISHED)
def test_rows_pixels_and_memory_are_as_predicted(family: Family, hub_id: str) -> None:
    processor = processor_of(family, hub_id)
    measured = 0
    for width, height in SIZES:
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        try:
            extent = processor.extent(width, height)
        except ImageError:
            with pytest.raises(ImageError):
                processor.images([picture])
            continue
        if extent.memory(width, height) > 1 << 30:
            continue
        measured += 1
        tracemalloc.start()
        pieces = processor.images([picture])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        made = sum(piece.vision["pixel_values"].size // 3 for piece in pieces)
        assert sum(piece.rows for piece in pieces) == extent.rows, (width, height)
        crops = "video" in hub_id or "caption" in hub_id
        assert made <= extent.pixels if crops else made == extent.pixels, (width, height)
        predicted = extent.memory(width, height) - extent.patches * PATCH_BYTES
        assert peak <= 1.1 * predicted + (4 << 20), (width, height, peak, predicted)
    assert measured >= 3


@pytest.mark.parametrize(("family", "hub_id"), PUBLISHED)
def test_photographs_are_taken_and_no_size_of_picture_takes_the_machine(family: Family, hub_id: str) -> None:
    processor = processor_of(family, hub_id)
    for width, height in [(640, 480), (1920, 1080), (4032, 3024), (9216, 6912), (1080, 2400), (2400, 12000)]:
        check_extent(processor.extent(width, height), CONTEXT, "photo.jpg", width, height)
    for size in [(1, 64_000_000), (64_000_000, 1), (64, 1_000_000), (1_000_000, 64), (16_000_000, 3)]:
        try:
            check_extent(processor.extent(*size), CONTEXT, "strip.png", *size)
        except ImageError:
            continue
        extent = processor.extent(*size)
        assert extent.pixels <= 16_000_000 and extent.further <= 1 << 30, size


def test_a_strip_is_refused_before_it_is_decoded_with_both_sizes() -> None:
    family = families()["minicpm-v"]
    processor = processor_of(family, "openbmb/MiniCPM-V-2")

    def check(name: str, width: int, height: int) -> None:
        check_extent(processor.extent(width, height), CONTEXT, name, width, height)

    strip = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (60_000_000, 1, 3))
    with pytest.raises(ImageError, match=r"1 x 60000000 pixels, .* GB of memory") as refusal:
        open_picture(strip, check=check)
    assert "cut it into pieces" in refusal.value.next_step
    extent = processor.extent(3000, 2000)
    check_extent(extent, extent.rows + 1, "photo.jpg", 3000, 2000)
    with pytest.raises(ImageError, match=rf"makes {extent.rows} rows of the prompt"):
        check_extent(extent, extent.rows, "photo.jpg", 3000, 2000)
