"""Block lengths that divide, and bytes of a layer with its padding."""

from __future__ import annotations

import pytest

from export.quantisation.block_length import AUTO, largest_dividing, length_for, padded_columns, stored_bytes
from export.quantisation.spec import Assignment, LayerShape, Storage

LENGTHS = (16, 32, 64, 128, AUTO)


@pytest.mark.parametrize(("columns", "length"), [([576], 64), ([1536], 128), ([576, 1536], 64), ([48], 16), ([1176], None)])
def test_the_largest_length_that_divides_all(columns: list[int], length: int | None) -> None:
    assert largest_dividing(columns, LENGTHS) == length


def test_a_number_is_taken_as_asked_and_auto_divides_or_pads_least() -> None:
    assert length_for(576, 128, LENGTHS) == 128
    assert length_for(576, AUTO, LENGTHS) == 64
    assert length_for(1176, AUTO, LENGTHS) == 32, "8 columns of padding, like 16; 64 and 128 take 40 and 104"
    assert length_for(1150, AUTO, LENGTHS) == 128, "2 columns each; the longest has the fewest scales"


def test_padding_is_part_of_what_a_layer_takes() -> None:
    layer = LayerShape("decoder.layers.0.attention.out", "decoder", 576, 576)
    sizes = {b: Assignment(layer, Storage.INT4, f"ort_int4_b{b}") for b in (32, 64, 128)}
    assert [padded_columns(a) for a in sizes.values()] == [0, 0, 64]
    assert stored_bytes(sizes[64]) == 576 * (288 + 2 * 9)
    assert stored_bytes(sizes[128]) == 576 * (320 + 2 * 5)
    assert stored_bytes(sizes[64]) < stored_bytes(sizes[32]), "a longer block has fewer scales"
    assert stored_bytes(sizes[64]) < stored_bytes(sizes[128]), "one that does not divide costs more than a shorter one"
    assert padded_columns(Assignment(layer, Storage.FP16)) == 0
