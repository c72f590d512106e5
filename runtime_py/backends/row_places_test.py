"""Rows come together, each keeps what it holds, and no window of places would have cost less."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.row_places import RowPlaces


@dataclass(eq=False)
class Sequence:
    number: int
    row: int
    length: int


class Buffer:
    """What lies in each place: the number of the sequence whose content it is."""

    def __init__(self, lengths: list[int]) -> None:
        self.sequences = [Sequence(number, number, length) for number, length in enumerate(lengths)]
        self.content = list(range(len(lengths)))
        self.copied = 0
        self.places = RowPlaces(self.sequences, self.exchange)

    def exchange(self, one: Sequence, other: Sequence) -> None:
        """What a backend does: it moves what the rows hold, by the places that they still name."""
        self.content[one.row], self.content[other.row] = self.content[other.row], self.content[one.row]
        self.copied += one.length + other.length


def least(sequences: list[Sequence], wanted: list[Sequence]) -> int:
    """Positions of those that must enter or leave the best window of places."""
    places, count = {sequence.row for sequence in wanted}, len(wanted)

    def cost(first: int) -> int:
        there = set(range(first, first + count))
        return sum(sequence.length for sequence in sequences if sequence.row in there ^ places)

    return min(cost(first) for first in range(len(sequences) - count + 1))


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    rounds=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=8),
)
def test_rows_come_together_for_as_little_as_any_window_costs(lengths: list[int], rounds: list[set[int]]) -> None:
    buffer = Buffer(lengths)
    for chosen in rounds:
        wanted = [buffer.sequences[number] for number in sorted(chosen) if number < len(lengths)]
        cost, before = least(buffer.sequences, wanted), buffer.copied
        first = buffer.places.gather(wanted)
        assert {sequence.row for sequence in wanted} == set(range(first, first + len(wanted)))
        assert buffer.copied - before == cost
        assert all(buffer.content[sequence.row] == sequence.number for sequence in buffer.sequences)


@pytest.mark.parametrize(
    ("lengths", "wanted", "places"),
    [
        ([9, 9, 9, 9], [2, 1], {1: 1, 2: 2}),  # next to each other already
        ([0, 0, 0, 0], [2, 1], {1: 1, 2: 2}),  # so too where other places would cost as little
        ([0, 5, 0, 9], [3, 1], {1: 2, 3: 3}),  # the shorter one moves, to a place where nothing is kept
        ([0, 5, 9, 7], [3, 1], {1: 1, 3: 0}),
        ([7, 4, 0, 6], [0, 1, 3], {0: 0, 1: 1, 3: 2}),
        ([2, 4, 0, 6], [0, 1, 3], {0: 2, 1: 1, 3: 3}),
    ],
)
def test_rows_come_together_where_least_is_copied(lengths: list[int], wanted: list[int], places: dict[int, int]) -> None:
    buffer = Buffer(lengths)
    assert buffer.places.gather([buffer.sequences[number] for number in wanted]) == min(places.values())
    assert {number: buffer.sequences[number].row for number in wanted} == places
