"""Rows of logits asked for in the words of graphs of three kinds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.backends.logit_rows import COUNT, POSITIONS, logit_rows
from runtime_py.errors import PackageError


@settings(max_examples=50)
@given(st.data(), st.integers(1, 9))
def test_a_count_gives_the_rows_that_were_named(data: st.DataObject, tokens: int) -> None:
    positions = np.array(data.draw(st.lists(st.integers(-tokens, tokens - 1), min_size=1, max_size=5)))
    everything = np.arange(tokens)[None, :, None]
    asked = logit_rows({"inputs_embeds", COUNT}, positions, tokens)
    assert asked.feeds[COUNT].shape == () and list(asked.feeds) == [COUNT]
    given_out = everything[:, -int(asked.feeds[COUNT]) :]
    np.testing.assert_array_equal(asked.chosen(given_out), everything[:, positions])


def test_the_usual_calls_copy_nothing() -> None:
    for positions, kept in ((np.array([-1]), 1), (np.arange(7), 7)):
        asked = logit_rows({COUNT}, positions, 7)
        assert (int(asked.feeds[COUNT]), asked.rows) == (kept, None)


def test_graphs_of_earlier_packages_get_the_positions_themselves() -> None:
    asked = logit_rows({POSITIONS}, np.array([2, -1]), 7)
    assert asked.feeds[POSITIONS].tolist() == [2, -1]
    assert asked.rows is None


def test_a_graph_whose_input_was_folded_away_serves_the_last_token_alone() -> None:
    assert logit_rows(set(), np.array([-1]), 7).feeds == {}
    with pytest.raises(PackageError, match="the last token alone"):
        logit_rows(set(), np.arange(7), 7)
