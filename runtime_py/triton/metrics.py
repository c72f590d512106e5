"""What a model counts, in Triton's own metrics: they stand at its metrics port, beside its queue and compute times.

The names are those of `runtime_py.serving.metrics`.
"""

from __future__ import annotations

from typing import Any

from runtime_py.engine.answer import Answer
from runtime_py.engine.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

GAUGES = {
    "slots": "Answers that can be made at a time",
    "slots_busy": "Slots that are reading a prompt or answering",
    "requests_held": "Requests that are waiting, being prepared or being answered",
    "requests_waiting": "Requests held that no slot works at",
    "cache_positions": "Positions that the caches of all slots have",
    "cache_positions_used": "Of these, positions that hold a token, kept beginnings included",
}
COUNTERS = {
    "requests": "Requests by how they ended",
    "prompt_tokens": "Tokens of prompts, image rows included",
    "prompt_tokens_cached": "Of these, tokens that were in a cache already",
    "generated_tokens": "Tokens of answers",
}
HISTOGRAMS = {
    "first_token_seconds": "From a request's preparation to its first token",
    "inter_token_seconds": "Between two tokens of one answer, mean of each answer",
    "queue_seconds": "Waiting for a slot",
    "image_seconds": "Preprocessing and vision encoder, where a picture was new",
}


class Metrics:
    """Counters of one instance of a model.

    Args:
        utilities: the module ``triton_python_backend_utils``.
        labels: ``model``, ``version`` and ``instance``.
    """

    def __init__(self, utilities: Any, service: Service, labels: dict[str, str]) -> None:
        self._service, self._labels = service, labels
        family = utilities.MetricFamily
        self._families: dict[str, Any] = {}
        self._rows: dict[tuple[str, str], Any] = {}
        for names, kind in ((GAUGES, family.GAUGE), (COUNTERS, family.COUNTER), (HISTOGRAMS, family.HISTOGRAM)):
            for name, meaning in names.items():
                self._families[name] = family(name=f"edgeproof_{name}", description=meaning, kind=kind)
        for name in (*GAUGES, *(name for name in COUNTERS if name != "requests")):
            self._rows[name, ""] = self._families[name].Metric(labels=labels)
        for name in HISTOGRAMS:
            self._rows[name, ""] = self._families[name].Metric(labels=labels, buckets=list(SECONDS))
        self._shown: dict[str, float] = {}
        self.look()

    def look(self) -> None:
        """Set the gauges to what is so now."""
        engine = self._service.engine
        held, busy = self._service.held, engine.busy
        now = {
            "slots": len(engine.slots),
            "slots_busy": busy,
            "requests_held": held,
            "requests_waiting": max(held - busy, 0),
            "cache_positions": len(engine.slots) * self._service.package.limits.context,
            "cache_positions_used": sum(slot.session.length for slot in engine.slots),
        }
        for name, value in now.items():
            if self._shown.get(name) != value:
                self._shown[name] = value
                self._rows[name, ""].set(value)

    def ended(self, outcome: str, answer: Answer | None) -> None:
        """Count a request: ``stop``, ``length`` with its answer, or ``refused``, ``failed``, ``cancelled``, ``timeout``."""
        row = self._rows.get(("requests", outcome))
        if row is None:
            row = self._families["requests"].Metric(labels={**self._labels, "outcome": outcome})
            self._rows["requests", outcome] = row
        row.increment(1)
        if answer is None:
            return
        timing = answer.timing
        self._add("prompt_tokens", timing.prompt_tokens)
        self._add("prompt_tokens_cached", timing.kept_tokens)
        self._add("generated_tokens", timing.answer_tokens)
        self._observe("first_token_seconds", timing.first_token_seconds)
        self._observe("queue_seconds", timing.queue_seconds)
        if timing.steps:
            self._observe("inter_token_seconds", timing.decode_seconds / timing.steps)
        if timing.image_seconds:
            self._observe("image_seconds", timing.image_seconds)

    def close(self) -> None:
        """Let go of the rows before their families, as Triton asks."""
        self._rows.clear()
        self._families.clear()

    def _add(self, name: str, count: int) -> None:
        if count:
            self._rows[name, ""].increment(count)

    def _observe(self, name: str, seconds: float) -> None:
        self._rows[name, ""].observe(seconds)
