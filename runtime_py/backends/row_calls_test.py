"""What several sequences are fed becomes one call's inputs."""

from __future__ import annotations

import numpy as np

from runtime_py.backends.row_calls import alike, stacked
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
