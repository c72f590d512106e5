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
from runtime_py.serving.measures import DECODER_SECONDS, ENGINE_SECONDS, PREFIX

PROMPT = "What is in the picture?"
LETTERS = 90
"""About as many tokens as a small picture has rows, where every letter is one."""

_ENGINE, _DECODER = PREFIX + ENGINE_SECONDS, PREFIX + DECODER_SECONDS


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        concurrency: requests in flight at a time, one figure after the other.
        requests: of each.
        new_tokens: of each answer.
        side: pixels of the drawn pictures' edges; 0 sends a text of `LETTERS` letters, different each time, in place of one.
        first_picture: number of the first that is drawn; equal numbers give equal pictures, which a server may know.
    """

    url: str
    key: str | None
    concurrency: tuple[int, ...]
    requests: int
    new_tokens: int
    side: int = 448
    first_picture: int = 0


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
    if min(load.requests, load.new_tokens, *load.concurrency, load.side + 1) < 1:
        raise UsageError("a count below 1", "at least 1", "correct it")
    client = Client(load.url, load.key)
    model = client.facts()["id"]
    first = load.first_picture
    _ask(client, _body(model, load, first))
    levels = [
        _level(client, model, load, count, first + 1 + place * load.requests) for place, count in enumerate(load.concurrency)
    ]
    return {
        "server": client.url,
        "model": model,
        "requests": load.requests,
        "new_tokens": load.new_tokens,
        "picture": f"{load.side} x {load.side} pixels, another one each time" if load.side else "no picture",
        "levels": levels,
    }


def _level(client: Client, model: str, load: Load, count: int, seed: int) -> dict[str, Any]:
    bodies = [_body(model, load, seed + number) for number in range(load.requests)]
    before = client.gauges()
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
        "beside_the_decoder": _beside(before, client.gauges()),
    }


def _beside(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Which part of its time the engine spent on anything but decoder calls; None where the server does not tell."""
    engine, decoder = (after.get(name, 0.0) - before.get(name, 0.0) for name in (_ENGINE, _DECODER))
    return 1 - decoder / engine if engine > 0 and decoder > 0 else None


def _body(model: str, load: Load, seed: int) -> dict[str, Any]:
    """A request with a picture, or a text, that is drawn for it."""
    draw = np.random.default_rng(seed)
    if load.side:
        asked = user_message(PROMPT, [draw.integers(0, 256, (load.side, load.side, 3), dtype=np.uint8)])
    else:
        asked = user_message("".join(chr(letter) for letter in draw.integers(97, 123, LETTERS)), [])
    return {
        "model": model,
        "messages": asked,
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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures for people."""
    rows = [
        f"{figures['model']} at {figures['server']}: {figures['requests']} requests a level, {figures['new_tokens']} tokens "
        f"each, {figures['picture']}",
        f"{'in flight':>9} {'tokens/s':>10} {'requests/s':>10} {'first token, s':>22} {'next token, s':>22} {'engine':>7}",
    ]
    for level in figures["levels"]:
        waits = [
            f"{level[name]['median']:.4f} (p95 {level[name]['p95']:.4f})"
            for name in ("first_token_seconds", "inter_token_seconds")
        ]
        rows.append(
            f"{level['concurrency']:>9} {level['tokens_per_second']:>10.1f} {level['requests_per_second']:>10.2f} "
            f"{waits[0]:>22} {waits[1]:>22} {_percent(level['beside_the_decoder']):>7}"
        )
    return rows
