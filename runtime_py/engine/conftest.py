"""Packages, a loaded model, a service for as long as a test takes, the wait for its last question to be let go of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import runtime_py
from runtime_py.conftest import model_of
from runtime_py.engine.service import Service, Sizes
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.tokenizer import Tokenizer

Planned = Callable[[str, str], Path]
BATCH, CHUNK = 4, 64
"""Sequences of a call and tokens of a chunk that `planned` exports for."""


@pytest.fixture(scope="module")
def model(exported: Path) -> Iterator[Model]:
    """The demo package, loaded."""
    with runtime_py.load(exported, threads=1) as loaded:
        yield loaded


@pytest.fixture
def numpy_model(words: Tokenizer, tmp_path: Path) -> Model:
    return model_of(words, tmp_path, Limits(160, 16))


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """A function (demo or checkpoint, precision) -> its package for BATCH sequences, with this machine's library alone."""
    from export.pipeline import export
    from export.request import ExportRequest

    def made(model: str, precision: str) -> Path:
        folder = tmp_path_factory.mktemp("mlc") / "out"
        weights = None if Path(model).is_dir() else "demo"
        request = ExportRequest(
            model, "android", weights, precision, output=folder, context=512, prefill_chunk=CHUNK, batch=BATCH,
            skip_verify=True, without_tokenizer=weights is None, host_only=True,
        )  # fmt: skip
        return export(request, None)

    return made


@contextmanager
def opened(model: Model, queue: int = 0, slots: int = 1, chunk: int | None = None) -> Iterator[Service]:
    """A service that is closed, without patience, when the context ends; closing it before does no harm."""
    sizes = Sizes(slots=slots, queue=queue, chunk=chunk)
    made = Service(model.package, model.backend, model.processor, model.tokenizer, sizes)
    try:
        yield made
    finally:
        made.close()


def until_nothing_is_held(service: Service, seconds: float = 30.0) -> None:
    """Wait until every question is answered or let go of; fails where that takes longer."""
    ends = time.monotonic() + seconds
    while service.held and time.monotonic() < ends:
        time.sleep(0.01)
    assert service.held == 0
