"""Rows change places and are copied; what they hold stays theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.ort_rows import CacheShapes, HostRows, OrtRow, rounds_over_rows
from runtime_py.errors import UsageError

SHAPES: CacheShapes = {
    "past_key_values.0.key": ((2, 3), np.dtype(np.float32)),
    "past_key_values.0.value": ((2, 3), np.dtype(np.float16)),
}


def filled(row: OrtRow, number: int) -> None:
    """Make a row hold ``number`` positions of its own number."""
    for buffer in row.buffers.values():
        buffer[0, :, :number] = number
    row.length = number


def holds(row: OrtRow, number: int) -> bool:
    return row.length == number and all((buffer[0, :, :number] == number).all() for buffer in row.buffers.values())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    rounds=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=6),
)
def test_gathered_rows_keep_what_they_hold(lengths: list[int], rounds: list[set[int]]) -> None:
    pool = HostRows(lambda array: array, SHAPES, len(lengths), 10)
    for row, length in zip(pool.rows, lengths, strict=True):
        filled(row, length)
    for chosen in rounds:
        wanted = [pool.rows[place] for place in sorted(chosen) if place < len(lengths)]
        first = pool.gather(wanted)
        assert {row.row for row in wanted} == set(range(first, first + len(wanted)))
        assert sorted(row.row for row in pool.rows) == list(range(len(lengths)))
        assert all(holds(row, length) for row, length in zip(pool.rows, lengths, strict=True))


@pytest.mark.parametrize(
    ("lengths", "wanted", "places"),
    [
        ([9, 9, 9, 9], [2, 1], {1: 1, 2: 2}),  # next to each other already
        ([0, 5, 0, 9], [3, 1], {1: 2, 3: 3}),  # the shorter one moves, to a place where nothing is kept
        ([0, 5, 9, 7], [3, 1], {1: 1, 3: 0}),
        ([7, 4, 0, 6], [0, 1, 3], {0: 0, 1: 1, 3: 2}),
        ([2, 4, 0, 6], [0, 1, 3], {0: 2, 1: 1, 3: 3}),
    ],
)
def test_rows_come_together_where_least_is_copied(lengths: list[int], wanted: list[int], places: dict[int, int]) -> None:
    pool = HostRows(lambda array: array, SHAPES, len(lengths), 10)
    for row, length in zip(pool.rows, lengths, strict=True):
        filled(row, length)
    assert pool.gather([pool.rows[number] for number in wanted]) == min(places.values())
    assert {number: pool.rows[number].row for number in wanted} == places


def test_a_copy_takes_the_beginning_alone() -> None:
    pool = HostRows(lambda array: array, SHAPES, 2, 10)
    one, other = pool.rows
    filled(one, 7)
    filled(other, 9)
    pool.copy(one, other, 4)
    assert other.length == 4 and all((buffer[0, :, :4] == 7).all() for buffer in other.buffers.values())
    assert holds(one, 7)
    with pytest.raises(UsageError):
        pool.copy(one, other, 8)
    with pytest.raises(UsageError):
        pool.copy(one, HostRows(lambda array: array, SHAPES, 1, 10).rows[0], 2)


def test_a_graph_that_rounds_all_rows_by_one_scale_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a MatMulNBits GroupQueryAttention")
    (tmp_path / "b.onnx").write_bytes(b"\x08\x0a\x15DynamicQuantizeLinear")
    assert [rounds_over_rows(tmp_path / name) for name in ("a.onnx", "b.onnx")] == [False, True]
