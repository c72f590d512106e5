"""Answers of an MLC package that was planned for several sequences a call are the answers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtime_py
from runtime_py.backends.mlc import MlcBackend
from runtime_py.contracts import DECODER
from runtime_py.engine.answer import Answer
from runtime_py.engine.conftest import BATCH, CHUNK, Planned
from runtime_py.engine.engine_test import QUESTION, Asked, Inbox, Room, alone, answers_are_those_alone
from runtime_py.errors import MachineError, UsageError
from runtime_py.model import Model

pytest.importorskip("tvm")

LAST = np.array([-1])
ROUNDING = {"float32": 1e-5, "float16": 1e-2}
"""Of the largest logit, by the model dtype: attention over pages that sequences share is merged with that over their own."""


@pytest.fixture(scope="module")
def mlc_model(planned: Planned) -> Iterator[Model]:
    with runtime_py.load(planned("minicpm-v", "q0f32")) as loaded:
        yield loaded


def mlc(model: Model) -> MlcBackend:
    assert isinstance(model.backend, MlcBackend)
    return model.backend


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(QUESTION, min_size=2, max_size=7), slots=st.integers(2, BATCH), chunk=st.sampled_from([7, 64]))
def test_answers_among_others_are_the_answers_alone(mlc_model: Model, asked: list[Asked], slots: int, chunk: int) -> None:
    answers_are_those_alone(Room(mlc_model, slots, chunk), asked)


def test_one_call_serves_all_that_answer(mlc_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    call = mlc(mlc_model)._call

    def counted(name: str, *arguments: Any) -> np.ndarray:
        calls.append((name, len(arguments[0])))
        return call(name, *arguments)

    monkeypatch.setattr(mlc_model.backend, "_call", counted)
    room = Room(mlc_model, BATCH, CHUNK)
    inboxes = [Inbox() for _ in range(BATCH)]
    for number, inbox in enumerate(inboxes):
        room.submit(Asked(number % 3, number % 2, 20), inbox)
    room.run()
    assert max(rows for name, rows in calls if name == "batch_decode") == BATCH
    assert sum(rows for name, rows in calls if name in ("batch_decode", "decode")) == BATCH * 19


def test_more_slots_than_were_planned_get_a_call_each(mlc_model: Model) -> None:
    room = Room(mlc_model, BATCH + 1, CHUNK)
    assert not room.engine.shares_calls and "planned for 4 sequences a call" in room.engine.notice
    inboxes = [Inbox() for _ in range(BATCH + 1)]
    for number, inbox in enumerate(inboxes):
        room.submit(Asked(number % 3, 0, 6), inbox)
    room.run()
    for number, inbox in enumerate(inboxes):
        assert isinstance(inbox.end, Answer) and inbox.end.ids == alone(mlc_model, Asked(number % 3, 0, 6))


def test_a_call_that_fails_ends_its_sequences_and_leaves_the_cache_usable(
    mlc_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(mlc_model, BATCH, CHUNK)
    call = mlc(mlc_model)._call

    def broken(name: str, *arguments: Any) -> np.ndarray:
        if name == "batch_decode":
            raise MemoryError
        return call(name, *arguments)

    failed, later = [Inbox(), Inbox()], [Inbox(), Inbox(), Inbox()]
    with monkeypatch.context() as patched:
        patched.setattr(mlc_model.backend, "_call", broken)
        for number, inbox in enumerate(failed):
            room.submit(Asked(number, 1, 12), inbox)
        room.run()
    assert all(isinstance(inbox.end, MachineError) for inbox in failed)
    for number, inbox in enumerate(later):
        room.submit(Asked(number, number % 2, 12), inbox)
    room.run()
    for number, inbox in enumerate(later):
        assert isinstance(inbox.end, Answer) and inbox.end.ids == alone(mlc_model, Asked(number, number % 2, 12))


def drawn(tokens: int, hidden: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, (1, tokens, hidden)).astype(np.float32)


def fed(backend: MlcBackend, embeds: np.ndarray, at: int, asked: int = 0) -> dict[str, np.ndarray]:
    """What a decoder takes of tokens from a position on; of those of a prompt, whose first is text, some are a picture's.

    Args:
        asked: which request they belong to, whose experts a decoder may choose and whose positions lie behind its picture.
    """
    tokens = embeds.shape[1]
    picture = np.arange(tokens) % 5 > 2
    rows, rest = np.flatnonzero(picture), np.flatnonzero(~picture)
    taken = {tensor.name: tensor.shape for tensor in backend.contracts[DECODER].inputs}
    axes = [int(size) for size in taken["position_ids"][:-2]]
    behind = 3 * asked if "position_ids" in backend._sides else 0
    made = {
        "position_ids": np.broadcast_to(np.arange(at, at + tokens) + behind, (*axes, 1, tokens)),
        "gate_input": drawn(1, embeds.shape[2], 1000 + asked)[0],
        "image_index": rows,
        "delta_index": np.where(picture, np.cumsum(picture) - 1, len(rows)),
        "language_index": rest,
        "vision_index": rows,
        "restore_index": np.argsort(np.concatenate([rest, rows]), kind="stable"),
    }
    return {"inputs_embeds": embeds, **{name: value for name, value in made.items() if name in taken}}


def held_to_alone(backend: MlcBackend) -> None:
    """Rows of a call have the bits of their own call; from a shared beginning they differ by what ROUNDING bounds."""
    hidden = int(backend.contracts["decoder"].inputs[0].shape[-1])

    def feed(state: Any, embeds: np.ndarray, asked: int) -> np.ndarray:
        return backend.forward(state, fed(backend, embeds, state.length, asked), LAST)[0]

    prompts = [drawn(tokens, hidden, tokens) for tokens in (5, 33, 16, 60)]
    states = backend.start_batch(BATCH, 100)
    single = [backend.start(100) for _ in prompts]
    for number, prompt in enumerate(prompts):
        for begun in (states, single):
            feed(begun[number], prompt, number)
    for who in ([0, 1, 2, 3], [3, 1], [2, 0, 3], [1, 2, 0]):
        steps = [drawn(1, hidden, 100 + number) for number in who]
        rows = backend.forward_batch(
            [states[number] for number in who],
            [fed(backend, step, states[number].length, number) for number, step in zip(who, steps, strict=True)],
        )
        for number, step, row in zip(who, steps, rows, strict=True):
            np.testing.assert_array_equal(row, feed(single[number], step, number))
    source, *others = states[3], states[0], states[1], states[2]
    for kept in (1, 15, 16, 33, 60):
        backend.rewind(source, 60)
        for state in others:
            backend.copy_prefix(source, state, kept)
        step = drawn(1, hidden, 7)
        rows = backend.forward_batch(states, [fed(backend, step, state.length, 3) for state in states])
        for row, length in zip(rows, (kept, kept, kept, 60), strict=True):
            own = backend.start(100)
            feed(own, prompts[3][:, :length], 3)
            expected = feed(own, step, 3)
            assert np.abs(row - expected).max() <= ROUNDING[backend.dtype] * np.abs(expected).max()


def test_logits_of_a_call_are_those_of_calls_of_their_own(mlc_model: Model) -> None:
    held_to_alone(mlc(mlc_model))


def test_a_rewound_or_emptied_sequence_leaves_those_that_share_its_pages(mlc_model: Model) -> None:
    backend = mlc(mlc_model)
    hidden = int(backend.contracts["decoder"].inputs[0].shape[-1])
    one, other, *_ = backend.start_batch(BATCH, 64)
    prompt, step = drawn(40, hidden, 1), drawn(1, hidden, 2)
    backend.forward(one, {"inputs_embeds": prompt}, LAST)
    for length in (40, 20, 0):
        backend.copy_prefix(one, other, 40)
        backend.rewind(one, length)
        if length < 40:
            backend.forward(one, {"inputs_embeds": drawn(40 - length, hidden, 3)}, LAST)
        alone = backend.start(64)
        backend.forward(alone, {"inputs_embeds": prompt}, LAST)
        expected = backend.forward(alone, {"inputs_embeds": step}, LAST)[0]
        (row,) = backend.forward_batch([other], [{"inputs_embeds": step}])
        assert np.abs(row - expected).max() <= ROUNDING["float32"] * np.abs(expected).max()
        backend.rewind(one, 0)
        backend.forward(one, {"inputs_embeds": prompt}, LAST)
    with pytest.raises(UsageError, match="copy of 41"):
        backend.copy_prefix(one, other, 41)
    with pytest.raises(UsageError, match="copy of 1 "):
        backend.copy_prefix(one, backend.start(64), 1)


@pytest.mark.parametrize(("count", "capacity"), [(BATCH, 90), (16, 17)])
def test_pages_suffice_for_full_sequences_that_were_shared_and_cut(mlc_model: Model, count: int, capacity: int) -> None:
    """As many as the cache holds, each of them full, after copies and rewinds within a page; 17 positions take two pages."""
    backend = mlc(mlc_model)
    hidden = int(backend.contracts["decoder"].inputs[0].shape[-1])
    states = backend.start_batch(count, capacity)
    backend.forward(states[0], {"inputs_embeds": drawn(14, hidden, 1)}, LAST)
    for kept in (14, 13, 5):
        for state in states[1:]:
            backend.copy_prefix(states[0], state, kept)
        for state in states:
            for start in range(state.length, capacity, CHUNK):
                tokens = min(CHUNK, capacity - start)
                backend.forward(state, {"inputs_embeds": drawn(tokens, hidden, 2)}, LAST)
        assert [state.length for state in states] == [capacity] * count
        backend.rewind(states[0], kept)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int4", "q4f32_1"])
def test_libraries_of_int4_hold_to_the_same(planned: Planned, precision: str) -> None:
    with runtime_py.load(planned("minicpm-v", precision)) as model:
        held_to_alone(mlc(model))
        greedy = [Asked(number % 5, number % 3, 8 + number) for number in range(9)]
        answers_are_those_alone(Room(model, BATCH, CHUNK), greedy)
