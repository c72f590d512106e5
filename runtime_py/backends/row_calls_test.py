"""What several sequences are fed becomes one call's inputs."""

from __future__ import annotations

import numpy as np

from runtime_py.backends.ort_decoder import CacheBuffers
from runtime_py.backends.ort_rows import HostRows
from runtime_py.backends.row_calls import alike, decode_rows, stacked
from runtime_py.contracts import TensorContract

TAKEN = (
    TensorContract("inputs_embeds", "float32", ("batch", "tokens", 4)),
    TensorContract("position_ids", "int64", (3, "batch", "tokens")),
    TensorContract("language_index", "int64", ("language_rows",)),
)


def step(number: int, index: int) -> dict[str, np.ndarray]:
    embeds, positions = np.full((1, 1, 4), number, np.float32), np.full((3, 1, 1), number)
    return {"inputs_embeds": embeds, "position_ids": positions, "language_index": np.array([index])}


def test_inputs_join_along_the_axis_that_the_contract_names() -> None:
    feeds = stacked(TAKEN, [step(1, 0), step(2, 0)])
    assert feeds["inputs_embeds"].shape == (2, 1, 4) and feeds["language_index"].tolist() == [0]
    assert feeds["position_ids"].tolist() == [[[1], [2]]] * 3


def test_what_holds_for_a_whole_call_parts_those_that_differ_in_it() -> None:
    assert alike(TAKEN, [step(1, 0), step(2, 5), step(3, 0)]) == [[0, 2], [1]]


def test_a_pass_brings_every_row_its_own_logits() -> None:
    """Rows asked for in another order than they lie in, two of which differ in what holds for a whole call."""
    pool = HostRows(lambda array: array, {"past": ((1, 1), np.dtype(np.float32))}, 5, 8)
    rows = [pool.rows[place] for place in (4, 0, 3, 1)]
    for row in rows:
        row.length = row.row + 1
        row.buffers.arrays["past"][:, :, : row.length] = row.length
    asked, calls = [step(number, index) for number, index in ((40, 7), (10, 0), (30, 0), (20, 0))], []

    def decode(feeds: dict[str, np.ndarray], lengths: np.ndarray, caches: CacheBuffers) -> np.ndarray:
        held = caches.arrays["past"][:, 0, 0, 0]
        assert held.tolist() == lengths.tolist(), "each call is given the caches of its rows"
        calls.append(lengths.tolist())
        return np.stack([feeds["inputs_embeds"][:, 0, 0], held], axis=1)[:, None]

    logits = decode_rows(TAKEN, rows, asked, decode)
    assert [each.tolist() for each in logits] == [[[40, 5]], [[10, 1]], [[30, 4]], [[20, 2]]]
    assert [sorted(call) for call in calls] == [[5], [1, 2, 4]]
    assert [row.length for row in rows] == [6, 2, 5, 3]
    (alone,) = decode_rows(TAKEN, rows[:1], asked[:1], lambda feeds, lengths, caches: lengths[:, None, None])
    assert alone.tolist() == [[6]] and rows[0].length == 7
