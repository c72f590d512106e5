"""Tensors lie where a runtime may map them, one behind the other, with the bytes that their numbers take."""

from __future__ import annotations

import pytest

from export.graphs.layout import Place, alignment, lay_out


def test_tensors_lie_in_order_from_where_a_page_begins() -> None:
    places, size = lay_out(
        [
            ("small", "float32", (3,)),
            ("codes", "int4", (4, 6)),
            ("page", "uint8", (4096,)),
            ("large", "float16", (512, 1024)),
            ("last", "int8", (7,)),
        ]
    )
    assert [(place.name, place.offset, place.length) for place in places] == [
        ("small", 0, 12),
        ("codes", 64, 12),
        ("page", 4096, 4096),
        ("large", 1 << 16, 1 << 20),
        ("last", (1 << 16) + (1 << 20), 7),
    ]
    assert size == places[-1].offset + 7
    assert lay_out([]) == ([], 0)


@pytest.mark.parametrize(("length", "step"), [(0, 64), (4095, 64), (4096, 4096), ((1 << 20) - 1, 4096), (1 << 20, 1 << 16)])
def test_what_is_aligned_to_a_page(length: int, step: int) -> None:
    assert alignment(length) == step


def test_a_row_is_an_entry_of_the_first_axis() -> None:
    assert Place("codes", "int4", (4, 6), 0).row_bytes == 3
    assert Place("stack", "float16", (5, 3, 2), 0).row_bytes == 12
    assert Place("flat", "float32", (3,), 0).row_bytes == 4
