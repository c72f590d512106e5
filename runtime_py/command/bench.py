"""How fast a package runs here: load, prefill and decode rates, first token with a picture, peak memory.

Every run does all the measurements once, so that a drift of the machine touches them alike; medians are reported
beside the smallest and largest value. The first run is not among them: it warms the caches, and its picture gives the
cold figure. ``load_seconds`` counts the check of the files and, where the backend can load ahead, the opening of all stages.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.base import LoadsAhead
from runtime_py.errors import UsageError
from runtime_py.generation.generate import Overrides
from runtime_py.memory import human_bytes, peak_resident_bytes
from runtime_py.model import Model, load
from runtime_py.package import Depth
from runtime_py.preprocess.pictures import open_picture


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        prompt_tokens: text tokens of the prefill figure; new_tokens: decoder steps of the decode figure.
        image: a picture file; None draws one of 448 x 448 pixels.
        trust: see runtime_py.model.load.
    """

    folder: Path
    backend: str | None
    threads: int
    providers: tuple[str, ...]
    verify: Depth
    runs: int
    prompt_tokens: int
    new_tokens: int
    image: str | None
    trust: str | bool = False


def measure(request: Request) -> dict[str, Any]:
    """JSON-able figures: ``{"median", "low", "high"}`` each, seconds or tokens per second.

    Raises:
        UsageError: a count below one, or a prompt and answer that exceed the package's context.
    """
    if min(request.runs, request.prompt_tokens, request.new_tokens) < 1:
        raise UsageError("runs, prompt tokens or new tokens below 1", "at least 1", "correct them")
    began = time.perf_counter()
    chosen = (request.backend, request.verify, request.threads, request.providers or None)
    with load(request.folder, *chosen, trust=request.trust) as model:
        if isinstance(model.backend, LoadsAhead):
            model.backend.load()
        load_seconds = time.perf_counter() - began
        total = request.prompt_tokens + request.new_tokens
        if total > model.package.limits.context:
            raise UsageError(
                f"{total} positions asked for", f"at most {model.package.limits.context}, the context", "ask for fewer"
            )
        picture = open_picture(request.image, check=model.check_picture) if request.image else _drawn()
        measurements: dict[str, Callable[[], list[float]]] = {
            "text": lambda: _text(model, request.prompt_tokens, request.new_tokens),
            "image": lambda: _image(model, picture),
        }
        _image(model, picture)
        cold = time.perf_counter() - began
        rows: dict[str, list[list[float]]] = {name: [] for name in measurements}
        for turn in range(request.runs + 1):
            for name, run in measurements.items():
                values = run()
                if turn:
                    rows[name].append(values)
        prefill, decode = zip(*rows["text"], strict=True)
        vision, first = zip(*rows["image"], strict=True)
        return {
            "package": {
                "family": model.package.family,
                "target": model.package.target,
                "precision": model.package.precision,
            },
            "backend": model.backend.name,
            "threads": request.threads,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "runs": request.runs,
            "prompt_tokens": request.prompt_tokens,
            "new_tokens": request.new_tokens,
            "load_seconds": load_seconds,
            "cold_first_token_seconds_with_image": cold,
            "prefill_tokens_per_second": _spread(prefill),
            "decode_tokens_per_second": _spread(decode),
            "image_seconds": _spread(vision),
            "first_token_seconds_with_image": _spread(first),
            "peak_resident_bytes": peak_resident_bytes(),
        }


def _text(model: Model, prompt_tokens: int, new_tokens: int) -> list[float]:
    """Prefill and decode rates of fixed pseudo-random ids; the tokens fed do not depend on the answers."""
    session = model.session
    model.reset()
    words = np.random.default_rng(7).integers(3, 100, prompt_tokens + new_tokens)
    layout = model.processor.layout(words[None, :prompt_tokens], [])
    began = time.perf_counter()
    session.prefill(session.embed(layout.input_ids), layout)
    filled = time.perf_counter()
    for token in words[prompt_tokens:]:
        session.step(int(token))
    ended = time.perf_counter()
    return [prompt_tokens / (filled - began), new_tokens / (ended - filled)]


def _image(model: Model, picture: np.ndarray) -> list[float]:
    model.reset()
    answer = model.chat("What is in the picture?", [picture], overrides=Overrides(max_new_tokens=1, temperature=0.0))
    return [answer.timing.image_seconds, answer.timing.first_token_seconds]


def _drawn() -> np.ndarray:
    rows, columns = np.mgrid[0:448, 0:448]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def _spread(values: tuple[float, ...]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures for people, a line each."""
    width = max(map(len, figures))
    return [f"{key.replace('_', ' '):{width}}  {_shown(key, value)}" for key, value in figures.items()]


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict) and "median" in value:
        return f"{_number(value['median'])} ({_number(value['low'])} to {_number(value['high'])})"
    if isinstance(value, dict):
        return ", ".join(str(item) for item in value.values())
    if key == "threads" and value == 0:
        return "the backend's choice (--threads 0)"
    if key == "runs":
        return f"{value}, of which medians are shown (lowest to highest)"
    if key.endswith("_bytes"):
        return human_bytes(value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
