from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_py
from runtime_py.backends.ort import OrtBackend
from runtime_py.model import Model

IDS = np.array([[1, 7, 9, 33, 40, 12]])


@pytest.fixture(scope="module")
def model(exported: Path) -> Iterator[Model]:
    with runtime_py.load(exported, threads=1) as opened:
        yield opened


def fed(model: Model, state: Any, ids: np.ndarray, rows: list[int]) -> np.ndarray:
    positions = np.arange(state.length, state.length + ids.shape[1])[None]
    inputs = {"inputs_embeds": model.session.embed(ids), "position_ids": positions}
    return model.backend.forward(state, inputs, np.array(rows))


def test_steps_of_one_cache_share_a_binding_and_no_array(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    backend = model.backend
    assert isinstance(backend, OrtBackend)
    session = backend._session("decoder")
    binding = session.io_binding

    def counted() -> object:
        made.append(binding())
        return made[-1]

    monkeypatch.setattr(session, "io_binding", counted)
    state = backend.start(32)
    whole = fed(model, state, IDS, [0, 1, 2, 3, 4, 5])
    assert whole.shape[:2] == (1, 6)
    again = backend.start(32)
    first = fed(model, again, IDS[:, :3], [-1])
    kept = first.copy()
    steps = [fed(model, again, IDS[:, place : place + 1], [-1]) for place in (3, 4, 5)]
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(np.concatenate([first, *steps], axis=1), whole[:, 2:], atol=1e-4)
    np.testing.assert_allclose(fed(model, backend.start(32), IDS, [1, 4]), whole[:, [1, 4]], atol=1e-4)
    assert len(made) == 3


def test_a_cache_that_is_left_is_freed_before_the_next_is_made(model: Model) -> None:
    backend = model.backend
    state = backend.start(32)
    fed(model, state, IDS, [-1])
    gone = weakref.ref(next(iter(state.buffers.values())))  # type: ignore[attr-defined]
    del state
    gc.collect()
    assert gone() is not None
    backend.start(32)
    assert gone() is None
