from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from runtime_py.backends.base import Arrays
from runtime_py.conftest import AttentionBackend
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Layout
from runtime_py.preprocess.minicpm_v import Processor

IDS = np.array([[1, 7, 101, 0, 0, 0, 0, 102, 9, 33, 40, 12]])


def _run(
    backend: AttentionBackend, processor: Processor, picture: np.ndarray, chunk: int, positions: Literal["all", "last"]
) -> np.ndarray:
    session = Session(backend, processor, Limits(64, chunk))
    images, features = session.encode_images([picture])
    layout = processor.layout(IDS, images)
    return session.prefill(session.merge(layout, features), layout, positions)


def test_chunks_do_not_change_the_logits(backend: AttentionBackend, processor: Processor, picture: np.ndarray) -> None:
    whole = _run(backend, processor, picture, 64, "all")
    assert whole.shape == (1, IDS.shape[1], 300)
    for chunk in (1, 5, 11, 12):
        backend.calls.clear()
        np.testing.assert_allclose(_run(backend, processor, picture, chunk, "all"), whole, atol=1e-5)
        assert max(backend.calls) <= chunk and sum(backend.calls) == IDS.shape[1]
        np.testing.assert_allclose(_run(backend, processor, picture, chunk, "last"), whole[:, -1:], atol=1e-5)


def test_steps_continue_the_prompt(backend: AttentionBackend, processor: Processor, picture: np.ndarray) -> None:
    session = Session(backend, processor, Limits(64, 5))
    images, features = session.encode_images([picture])
    longer = np.concatenate([IDS, [[55, 56, 57]]], axis=1)
    layout = processor.layout(longer, images)
    expected = session.prefill(session.merge(layout, features), layout, "all")
    layout = processor.layout(IDS, images)
    session.prefill(session.merge(layout, features), layout)
    for place, token in enumerate([55, 56, 57]):
        np.testing.assert_allclose(session.step(token)[0, 0], expected[0, IDS.shape[1] + place], atol=1e-5)
    assert session.length == longer.shape[1] and session.room == 64 - session.length


def test_merge_overwrites_the_image_rows_alone(backend: AttentionBackend, processor: Processor, picture: np.ndarray) -> None:
    session = Session(backend, processor, Limits(64, 5))
    images, features = session.encode_images([picture])
    layout = processor.layout(IDS, images)
    merged = session.merge(layout, features)
    np.testing.assert_array_equal(merged[0, 3:7], features[0])
    kept = np.r_[0:3, 7:12]
    np.testing.assert_allclose(merged[0, kept], backend.table[IDS[0, kept]], rtol=1e-6)
    with pytest.raises(UsageError, match="0 rows of image features for a prompt with 4"):
        session.merge(layout, [])


def test_recorder_sees_every_probe_in_order(backend: AttentionBackend, processor: Processor, picture: np.ndarray) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []
    session = Session(backend, processor, Limits(64, 5), lambda name, array: seen.append((name, array.shape)))
    images, features = session.encode_images([picture])
    layout = processor.layout(IDS, images)
    session.prefill(session.merge(layout, features), layout, "all")
    session.step(4)
    assert seen == [
        ("pixel_values", (1, 3, 28, 28)),
        ("vision", (1, 4, 12)),
        ("connector", (1, 4, 24)),
        ("inputs_embeds", (1, 12, 24)),
        ("prefill_logits", (1, 12, 300)),
        ("step_logits", (1, 1, 300)),
    ]


def test_kept_prefix_gives_the_same_logits(backend: AttentionBackend, processor: Processor) -> None:
    def layout_of(ids: list[int]) -> Layout:
        return processor.layout(np.array([ids]), [])

    first, second = [1, 7, 8, 9, 10, 11], [1, 7, 8, 9, 60, 61, 62]
    fresh = Session(backend, processor, Limits(64, 4))
    expected = fresh.prefill(fresh.embed(np.array([second])), layout_of(second))
    session = Session(backend, processor, Limits(64, 4))
    session.prefill(session.embed(np.array([first])), layout_of(first))
    session.step(70)
    assert session.can_keep(layout_of(second), 4)
    backend.calls.clear()
    got = session.prefill(session.embed(np.array([second])), layout_of(second), keep=4)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert sum(backend.calls) == 3


def test_a_prompt_from_nothing_takes_the_memory_of_the_one_before(backend: AttentionBackend, processor: Processor) -> None:
    first, second = (processor.layout(np.array([ids]), []) for ids in ([1, 7, 8, 9, 10, 11], [1, 60, 61]))
    fresh = Session(backend, processor, Limits(64, 4))
    expected = fresh.prefill(fresh.embed(second.input_ids), second)
    session, made, start = Session(backend, processor, Limits(64, 4)), [], backend.start
    backend.start = lambda capacity: made.append(capacity) or start(capacity)  # type: ignore[method-assign,func-returns-value]
    session.prefill(session.embed(first.input_ids), first)
    session.step(70)
    np.testing.assert_array_equal(session.prefill(session.embed(second.input_ids), second), expected)
    assert (session.length, made) == (3, [64])
    session.reset()
    session.prefill(session.embed(second.input_ids), second)
    assert made == [64, 64]


@pytest.mark.parametrize("keep", [0, 3, 6])
def test_a_prompt_forgets_the_draft_that_was_neither_accepted_nor_rejected(
    backend: AttentionBackend, processor: Processor, keep: int
) -> None:
    first, second = (processor.layout(np.array([ids]), []) for ids in ([1, 7, 8, 9, 10, 11], [1, 7, 8, 9, 10, 11, 61]))
    fresh = Session(backend, processor, Limits(64, 4))
    expected = fresh.prefill(fresh.embed(second.input_ids), second)
    session = Session(backend, processor, Limits(64, 4))
    session.prefill(session.embed(first.input_ids), first)
    session.verify_draft([70, 71, 72])
    got = session.prefill(session.embed(second.input_ids), second, keep=keep)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (session.length, session.room) == (7, 57)


def test_keep_is_refused_when_positions_differ(backend: AttentionBackend, processor: Processor) -> None:
    session = Session(backend, processor, Limits(64, 4))
    layout = processor.layout(np.array([[1, 7, 8]]), [])
    session.prefill(session.embed(layout.input_ids), layout)
    moved = Layout(layout.input_ids, layout.image_rows, {"position_ids": np.array([[0, 1, 5]])})
    assert session.can_keep(moved, 2)
    assert not session.can_keep(moved, 3)


def test_overflow_is_refused_before_anything_runs(backend: AttentionBackend, processor: Processor) -> None:
    session = Session(backend, processor, Limits(8, 4))
    layout = processor.layout(np.arange(20, 29)[None], [])
    with pytest.raises(UsageError, match="9 tokens"):
        session.prefill(np.zeros((1, 9, 24), np.float32), layout)
    assert backend.calls == []


def test_a_full_cache_and_an_empty_one_are_refused(backend: AttentionBackend, processor: Processor) -> None:
    session = Session(backend, processor, Limits(4, 4))
    with pytest.raises(UsageError, match="nothing is in the cache"):
        session.step(3)
    layout = processor.layout(np.array([[1, 7, 8, 9]]), [])
    session.prefill(session.embed(layout.input_ids), layout)
    with pytest.raises(UsageError, match="no cache position"):
        session.step(3)


def test_a_connector_with_other_rows_is_refused(processor: Processor, picture: np.ndarray) -> None:
    backend = AttentionBackend()
    backend.rows = backend.rows[:3]
    with pytest.raises(PackageError, match="3 image rows for picture 1"):
        Session(backend, processor, Limits(64, 4)).encode_images([picture])


class _Routed(Processor):
    """Chooses a row from the embeddings, as routed families do; the choice differs by phase."""

    seen: list[tuple[str, float, float]]

    def embedding_inputs(self, layout: Layout, merged: np.ndarray, raw: np.ndarray, phase: str) -> dict[str, np.ndarray]:
        self.seen.append((phase, float(merged[0, 3].sum()), float(raw[0, 3].sum())))
        return {"route": np.array([0 if phase == "prefill" else 1])}


def test_inputs_made_from_embeddings_reach_every_call_of_their_phase(picture: np.ndarray, processor: Processor) -> None:
    routes: list[int] = []

    class Backend(AttentionBackend):
        def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
            routes.append(int(inputs["route"][0]))
            return super().forward(state, inputs, logit_positions)

    routed = _Routed(processor.settings, None)
    routed.seen = []
    backend = Backend()
    session = Session(backend, routed, Limits(64, 5))
    images, features = session.encode_images([picture])
    layout = routed.layout(IDS, images)
    session.prefill(session.merge(layout, features), layout)
    session.step(5)
    session.step(6)
    assert routes == [0, 0, 0, 1, 1]
    assert [phase for phase, _, _ in routed.seen] == ["prefill", "decode"]
    for _, merged, raw in routed.seen:
        assert merged == pytest.approx(features[0][0].sum(), rel=1e-5)
        assert raw == pytest.approx(backend.table[0].sum(), rel=1e-5)
    assert not session.can_keep(layout, 2)
