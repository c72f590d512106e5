"""How a server answers under load: tokens per second, and how long a client waits for the first token and the next ones.

Every request brings a picture of its own and streams its answer, and no token ends one, so that all are equally long. The
levels of concurrency are run one after the other in one invocation, each with as many requests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.serving.client import Client, user_message

PROMPT = "What is in the picture?"


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        concurrency: requests in flight at a time, one figure after the other.
        requests: of each.
        new_tokens: of each answer.
        side: pixels of the drawn pictures' edges.
    """

    url: str
    key: str | None
    concurrency: tuple[int, ...]
    requests: int
    new_tokens: int
    side: int = 448


@dataclass
class Waits:
    """One answer's times in seconds, as its client saw them."""

    first: float = 0.0
    between: list[float] = field(default_factory=list)
    tokens: int = 0


def measure(load: Load) -> dict[str, Any]:
    """Figures by level of concurrency.

    Raises:
        UsageError: a count below 1, or the server refuses a request.
        MachineError: the server is not there, or breaks off.
    """
    if min(load.requests, load.new_tokens, *load.concurrency, load.side) < 1:
        raise UsageError("a count below 1", "at least 1", "correct it")
    client = Client(load.url, load.key)
    model = client.facts()["id"]
    _ask(client, _body(model, load, 0))
    levels = [_level(client, model, load, count, 1 + place * load.requests) for place, count in enumerate(load.concurrency)]
    return {
        "server": client.url,
        "model": model,
        "requests": load.requests,
        "new_tokens": load.new_tokens,
        "picture": f"{load.side} x {load.side} pixels, another one each time",
        "levels": levels,
    }


def _level(client: Client, model: str, load: Load, count: int, seed: int) -> dict[str, Any]:
    bodies = [_body(model, load, seed + number) for number in range(load.requests)]
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        waits = list(threads.map(partial(_ask, client), bodies))
    seconds = time.perf_counter() - began
    tokens = sum(each.tokens for each in waits)
    between = [gap for each in waits for gap in each.between]
    return {
        "concurrency": count,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": load.requests / seconds,
        "first_token_seconds": _shares([each.first for each in waits]),
        "inter_token_seconds": _shares(between),
    }


def _body(model: str, load: Load, seed: int) -> dict[str, Any]:
    """A request with a picture that is drawn for it."""
    picture = np.random.default_rng(seed).integers(0, 256, (load.side, load.side, 3), dtype=np.uint8)
    return {
        "model": model,
        "messages": user_message(PROMPT, [picture]),
        "max_tokens": load.new_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "logprobs": True,
        "stream_options": {"include_usage": True},
    }


def _ask(client: Client, body: Mapping[str, Any]) -> Waits:
    waits, last = Waits(), time.perf_counter()
    began = last
    for chunk in client.stream(body):
        now = time.perf_counter()
        if chunk.get("usage"):
            waits.tokens = int(chunk["usage"]["completion_tokens"])
        elif chunk["choices"] and chunk["choices"][0].get("logprobs"):
            if waits.first:
                waits.between.append(now - last)
            else:
                waits.first = now - began
            last = now
    return waits


def _shares(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"median": 0.0, "p95": 0.0}
    return {"median": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures for people."""
    rows = [
        f"{figures['model']} at {figures['server']}: {figures['requests']} requests a level, {figures['new_tokens']} tokens "
        f"each, {figures['picture']}",
        f"{'in flight':>9} {'tokens/s':>10} {'requests/s':>10} {'first token, s':>22} {'next token, s':>22}",
    ]
    for level in figures["levels"]:
        waits = [
            f"{level[name]['median']:.4f} (p95 {level[name]['p95']:.4f})"
            for name in ("first_token_seconds", "inter_token_seconds")
        ]
        rows.append(
            f"{level['concurrency']:>9} {level['tokens_per_second']:>10.1f} {level['requests_per_second']:>10.2f} "
            f"{waits[0]:>22} {waits[1]:>22}"
        )
    return rows
