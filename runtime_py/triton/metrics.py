"""What a model counts, in Triton's own metrics: they stand at its metrics port, beside its queue and compute times.

Names, meanings and buckets are those of `runtime_py.serving.measures`, which ``edgeproof serve`` has too. Only here: how
many requests no slot works at, and how full the caches are. Only there: how many prepared requests are queued.
"""

from __future__ import annotations

from typing import Any

from runtime_py.engine.answer import Answer
from runtime_py.engine.service import Service
from runtime_py.serving import measures
from runtime_py.serving.measures import COUNTERS, HISTOGRAMS, OUTCOME, PREFIX, REQUESTS, SECONDS, observed

GAUGES = measures.GAUGES | {
    "requests_waiting": "Requests held that no slot works at",
    "cache_positions": "Positions that the caches of all slots have",
    "cache_positions_used": "Of these, positions that hold a token, kept beginnings included",
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
                self._families[name] = family(name=PREFIX + name, description=meaning, kind=kind)
        for name in (*GAUGES, *(name for name in COUNTERS if name != REQUESTS)):
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
        row = self._rows.get((REQUESTS, outcome))
        if row is None:
            row = self._families[REQUESTS].Metric(labels={**self._labels, OUTCOME: outcome})
            self._rows[REQUESTS, outcome] = row
        row.increment(1)
        if answer is None:
            return
        added = observed(answer.timing)
        for name, count in added.counts.items():
            if count:
                self._rows[name, ""].increment(count)
        for name, seconds in added.seconds.items():
            self._rows[name, ""].observe(seconds)

    def close(self) -> None:
        """Let go of the rows before their families, as Triton asks."""
        self._rows.clear()
        self._families.clear()
