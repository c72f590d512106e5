"""Sequences of MLC packages whose decoders read more than rows share calls too: experts, adapters, their own positions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime_py
from parity_tests.conftest import GOLDENS
from runtime_py.backends.mlc import MlcBackend
from runtime_py.backends.mlc_rows import Steps, sequence_axis
from runtime_py.contracts import TensorContract
from runtime_py.engine.conftest import BATCH, CHUNK, Planned
from runtime_py.engine.engine_test import QUESTION, Asked, Inbox, Room, answers_are_those_alone
from runtime_py.engine.mlc_batch_test import held_to_alone, mlc
from runtime_py.engine.slot import Slot
from runtime_py.model import Model

pytest.importorskip("tvm")

SIDED = {"cogvlm2": "batch_run_decoder", "wemm": "batch_decode", "awaker2.5-vl": "batch_run_decoder"}
"""Demos by what takes a token of each of several sequences: visual experts and positions that a picture's rows share, rows
of adapters, positions on three axes and experts that each conversation chooses."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["q0f32", "int4"])
@pytest.mark.parametrize("demo", SIDED)
def test_answers_among_others_are_the_answers_alone(
    planned: Planned, demo: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime_py.load(planned(demo, precision)) as model:
        held_to_alone(mlc(model))
        with monkeypatch.context() as patched:
            one_call_serves_all(model, SIDED[demo], patched)

        @settings(max_examples=8, deadline=None)
        @given(st.lists(QUESTION, min_size=2, max_size=7), st.integers(2, BATCH), st.sampled_from([7, CHUNK]))
        def among_others(asked: list[Asked], slots: int, chunk: int) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(Slot, "common", lambda slot, prompt: 0)
                answers_are_those_alone(Room(model, slots, CHUNK), asked)
            # behind a beginning that float16 keys are shared of, what is drawn may part (`ROUNDING`); the best token may not
            greedy = [replace(each, sampled=each.sampled and mlc(model).dtype == "float32") for each in asked]
            answers_are_those_alone(Room(model, slots, chunk), greedy)

        among_others()


def one_call_serves_all(model: Model, function: str, patched: pytest.MonkeyPatch) -> None:
    """Four are asked at once, three of them about pictures; most steps take a token of each."""
    rows: list[int] = []
    call = mlc(model)._call

    def counted(name: str, *arguments: Any) -> np.ndarray:
        if name == function:
            rows.append(len(arguments[0]))
        return call(name, *arguments)

    patched.setattr(model.backend, "_call", counted)
    room = Room(model, BATCH, CHUNK)
    for number in range(BATCH):
        room.submit(Asked(number, (number + 1) % 3, 20), Inbox())
    room.run()
    assert rows.count(BATCH) >= 12


@pytest.mark.slow
def test_a_library_that_is_fed_positions_holds_to_the_same(planned: Planned) -> None:
    folder = planned(str(GOLDENS / "qwen2-vl"), "q4f32_1")
    backend = MlcBackend(folder, json.loads((folder / "manifest.json").read_text()))
    assert backend._sides == ["position_ids"] and backend.why_not_batched(BATCH) == ""
    held_to_alone(backend)


def side(name: str, *shape: int | str) -> TensorContract:
    return TensorContract(name, "int64", shape)


def test_a_call_is_shared_by_text_tokens_of_a_package_that_was_planned_for_them() -> None:
    experts = [side("position_ids", "batch", "tokens"), side("language_index", "language_rows")]
    gates = [side("position_ids", 3, "batch", "tokens"), side("gate_input", 1, 8)]
    assert [sequence_axis(tensor) for tensor in (*experts, *gates)] == [0, None, 1, 0]
    steps = Steps(experts, {"language_index": [0]})
    text = {"position_ids": np.array([[5]]), "language_index": np.array([0])}
    picture = {**text, "language_index": np.array([], np.int64)}
    assert steps.are_text([text, text]) and not steps.are_text([text, picture])
    assert [(array.tolist(), kind) for array, kind in steps.joined([text, text])] == [([[5], [5]], "int64")]
    assert (steps.function, Steps(experts[1:], {}).function) == ("batch_run_decoder", "batch_decode")
    assert steps.why_not_together({"max_batch_size": 4}, 4) == ""
    assert "max_batch_size 1;" in steps.why_not_together({"max_batch_size": 1}, 2)
    untold = Steps(gates, None).why_not_together({"max_batch_size": 4}, 2)
    assert "position_ids, gate_input of one sequence a call (export the package again)" in untold
