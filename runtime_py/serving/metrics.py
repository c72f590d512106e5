"""What a server counts, in Prometheus' text form."""

from __future__ import annotations

from runtime_py.engine.answer import Answer
from runtime_py.engine.service import Service
from runtime_py.serving.measures import (
    COUNTERS,
    DECODER_SECONDS,
    ENGINE_SECONDS,
    GAUGES,
    HISTOGRAMS,
    OUTCOME,
    PREFIX,
    REQUESTS,
    SECONDS,
    observed,
)

OWN_GAUGES = {
    "requests_queued": "Prepared requests that wait for a slot",
    ENGINE_SECONDS: "At work on tokens, decoder calls included, since the start",
    DECODER_SECONDS: "Of these, in decoder calls; 0 where the backend does not tell",
}


class Metrics:
    """Counters of one server.

    Attributes:
        content_type: of `text`.
    """

    def __init__(self, service: Service) -> None:
        import prometheus_client as prometheus

        self._prometheus = prometheus
        registry = self._registry = prometheus.CollectorRegistry()
        self.content_type: str = prometheus.CONTENT_TYPE_LATEST

        now = {
            "slots": lambda: len(service.engine.slots),
            "slots_busy": lambda: service.engine.busy,
            "requests_held": lambda: service.held,
            "requests_queued": lambda: service.engine.queued,
            ENGINE_SECONDS: lambda: service.engine.seconds,
            DECODER_SECONDS: lambda: service.engine.decoder_seconds,
        }
        for name, meaning in (GAUGES | OWN_GAUGES).items():
            prometheus.Gauge(PREFIX + name, meaning, registry=registry).set_function(now[name])
        self._counters = {
            name: prometheus.Counter(PREFIX + name, meaning, (OUTCOME,) if name == REQUESTS else (), registry=registry)
            for name, meaning in COUNTERS.items()
        }
        self._histograms = {
            name: prometheus.Histogram(PREFIX + name, meaning, buckets=SECONDS, registry=registry)
            for name, meaning in HISTOGRAMS.items()
        }

    def answered(self, answer: Answer) -> None:
        """Count a finished answer."""
        self.ended(str(answer.finish))
        added = observed(answer.timing)
        for name, count in added.counts.items():
            self._counters[name].inc(count)
        for name, seconds in added.seconds.items():
            self._histograms[name].observe(seconds)

    def ended(self, outcome: str) -> None:
        """Count a request: without an answer as ``refused``, ``failed``, ``cancelled`` or ``timeout``."""
        self._counters[REQUESTS].labels(outcome).inc()

    def text(self) -> bytes:
        """All counters as a scrape reads them."""
        return bytes(self._prometheus.generate_latest(self._registry))
