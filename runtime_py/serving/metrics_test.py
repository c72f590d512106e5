"""What a scrape reads after answers and refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client")

from runtime_py.engine.answer import Answer, Timing
from runtime_py.generation.generate import Finish
from runtime_py.serving.conftest import NAME, Server, question
from runtime_py.serving.hostile_request_test import send
from runtime_py.serving.metrics import Metrics

TIMING = Timing(
    prompt_tokens=20, kept_tokens=8, answer_tokens=5, steps=4, image_seconds=0.2, prefill_seconds=0.5,
    first_token_seconds=0.75, decode_seconds=0.08, queue_seconds=0.003,
)  # fmt: skip


def scraped(metrics: Metrics) -> dict[str, float]:
    """Rows by name and labels."""
    rows = [line.rpartition(" ") for line in metrics.text().decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("edgeproof_"): float(value) for name, _, value in rows if "_created" not in name}


def test_an_answer_is_counted_once_in_each_counter_and_histogram(server: Server) -> None:
    metrics = Metrics(server.service)
    metrics.answered(Answer("a", (1,), Finish.LENGTH, TIMING))
    rows = scraped(metrics)
    told = {name: rows[f"{name}_total"] for name in ("prompt_tokens", "prompt_tokens_cached", "generated_tokens")}
    assert told == {"prompt_tokens": 20.0, "prompt_tokens_cached": 8.0, "generated_tokens": 5.0}
    assert {name: value for name, value in rows.items() if "outcome" in name} == {'requests_total{outcome="length"}': 1.0}
    sums = {name.removesuffix("_sum"): value for name, value in rows.items() if name.endswith("_sum")}
    assert sums == {
        "first_token_seconds": 0.75, "inter_token_seconds": 0.02, "queue_seconds": 0.003, "image_seconds": 0.2,
    }  # fmt: skip
    assert all(rows[f"{name}_count"] == 1.0 for name in sums)
    assert (rows['first_token_seconds_bucket{le="0.5"}'], rows['first_token_seconds_bucket{le="1.0"}']) == (0.0, 1.0)


def test_what_an_answer_did_not_have_is_not_observed(server: Server) -> None:
    """One token has no time between two, and a picture that is known takes none."""
    metrics = Metrics(server.service)
    metrics.answered(Answer("a", (1,), Finish.STOP, replace(TIMING, steps=0, image_seconds=0.0)))
    rows = scraped(metrics)
    counts = {name: rows[f"{name}_count"] for name in ("inter_token_seconds", "image_seconds", "queue_seconds")}
    assert counts == {"inter_token_seconds": 0.0, "image_seconds": 0.0, "queue_seconds": 1.0}


def test_gauges_are_what_is_so_now(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, engine = Metrics(server.service), server.service.engine
    monkeypatch.setattr(type(server.service), "held", 5)
    monkeypatch.setattr(type(engine), "busy", 3)
    monkeypatch.setattr(type(engine), "queued", 2)
    monkeypatch.setattr(type(engine), "decoder_seconds", 1.5)
    monkeypatch.setattr(engine, "seconds", 2.5)
    rows = scraped(metrics)
    names = ("slots", "slots_busy", "requests_held", "requests_queued", "engine_seconds", "engine_decoder_seconds")
    assert [rows[name] for name in names] == [4.0, 3.0, 5.0, 2.0, 2.5, 1.5]


def test_a_server_counts_tokens_as_its_answers_do(server: Server) -> None:
    from urllib.request import urlopen

    def counts() -> list[float]:
        with urlopen(f"{server.url}/metrics", timeout=60) as answer:
            rows = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        names = ("prompt_tokens_total", "generated_tokens_total", 'requests_total{outcome="length"}')
        return [float(rows.get(f"edgeproof_{name}", 0)) for name in (*names, 'requests_total{outcome="refused"}')]

    before = counts()
    body = {"model": NAME, "messages": question("How many?"), "max_tokens": 3, "ignore_eos": True}
    status, value = send(server, json.dumps(body))
    assert status == 200
    assert send(server, json.dumps({**body, "max_tokens": 0}))[0] == 400
    added = [after - first for after, first in zip(counts(), before, strict=True)]
    assert added == [value["usage"]["prompt_tokens"], 3.0, 1.0, 1.0]
