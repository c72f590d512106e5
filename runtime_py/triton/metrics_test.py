"""What Triton's metrics port tells of a model: what is so now, and what an answer adds."""

from __future__ import annotations

import pytest

from runtime_py.engine.answer import Answer
from runtime_py.generation.generate import Finish
from runtime_py.serving.metrics_test import TIMING
from runtime_py.triton.conftest import Utilities
from runtime_py.triton.metrics import Metrics
from runtime_py.triton.model import TritonModel


@pytest.fixture
def metrics(served: TritonModel, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setattr(Utilities, "rows", {})
    return Metrics(Utilities, served.service, {"model": "demo", "version": "1", "instance": "demo_0_0"})


def told(*names: str) -> list[float]:
    return [Utilities.rows[f"edgeproof_{name}", ""].value for name in names]


@pytest.mark.parametrize(("held", "busy", "waiting"), [(5, 2, 3.0), (1, 2, 0.0), (0, 0, 0.0)])
def test_gauges_are_what_is_so_now(
    metrics: Metrics, served: TritonModel, monkeypatch: pytest.MonkeyPatch, held: int, busy: int, waiting: float
) -> None:
    """The autoscaler goes by requests that wait; a slot that is about to be free may be counted a moment too long."""
    service, engine = served.service, served.service.engine
    monkeypatch.setattr(type(service), "held", held)
    monkeypatch.setattr(type(engine), "busy", busy)
    metrics.look()
    assert told("requests_held", "slots_busy", "requests_waiting") == [held, busy, waiting]
    assert told("slots", "cache_positions") == [2.0, 2.0 * service.package.limits.context]


def test_an_answer_is_counted_once_in_each_counter_and_histogram(metrics: Metrics) -> None:
    for _ in range(2):
        metrics.ended("length", Answer("a", (1,), Finish.LENGTH, TIMING))
    metrics.ended("refused", None)
    assert told("prompt_tokens", "prompt_tokens_cached", "generated_tokens") == [40.0, 16.0, 10.0]
    outcomes = {outcome: row.value for (name, outcome), row in Utilities.rows.items() if name == "edgeproof_requests"}
    assert outcomes == {"length": 2.0, "refused": 1.0}
    seconds = {name: row.observed for (name, _), row in Utilities.rows.items() if name.endswith("_seconds")}
    assert seconds == {
        "edgeproof_first_token_seconds": [0.75] * 2,
        "edgeproof_inter_token_seconds": [0.02] * 2,
        "edgeproof_queue_seconds": [0.003] * 2,
        "edgeproof_image_seconds": [0.2] * 2,
    }
