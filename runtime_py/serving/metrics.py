"""What a server counts, in Prometheus' text form."""

from __future__ import annotations

from runtime_py.engine.answer import Answer
from runtime_py.engine.service import Service

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


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

        def gauge(name: str, what: str) -> prometheus.Gauge:
            return prometheus.Gauge(f"edgeproof_{name}", what, registry=registry)

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> prometheus.Counter:
            return prometheus.Counter(f"edgeproof_{name}", what, labels, registry=registry)

        def histogram(name: str, what: str) -> prometheus.Histogram:
            return prometheus.Histogram(f"edgeproof_{name}", what, buckets=SECONDS, registry=registry)

        gauge("slots", "Answers that can be made at a time").set(len(service.engine.slots))
        gauge("slots_busy", "Slots that are reading a prompt or answering").set_function(lambda: service.engine.busy)
        gauge("requests_held", "Requests that are waiting, being prepared or being answered").set_function(
            lambda: service.held
        )
        gauge("requests_queued", "Prepared requests that wait for a slot").set_function(lambda: service.engine.queued)
        self._requests = counter("requests", "Requests by how they ended", ("outcome",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts, image rows included")
        self._cached = counter("prompt_tokens_cached", "Of these, tokens that were in a cache already")
        self._generated = counter("generated_tokens", "Tokens of answers")
        self._first = histogram("first_token_seconds", "From a request's preparation to its first token")
        self._between = histogram("inter_token_seconds", "Between two tokens of one answer, mean of each answer")
        self._queue = histogram("queue_seconds", "Waiting for a slot")
        self._image = histogram("image_seconds", "Preprocessing and vision encoder, where a picture was new")

    def answered(self, answer: Answer) -> None:
        """Count a finished answer."""
        timing = answer.timing
        self._requests.labels(str(answer.finish)).inc()
        self._prompt.inc(timing.prompt_tokens)
        self._cached.inc(timing.kept_tokens)
        self._generated.inc(timing.answer_tokens)
        self._first.observe(timing.first_token_seconds)
        self._queue.observe(timing.queue_seconds)
        if timing.steps:
            self._between.observe(timing.decode_seconds / timing.steps)
        if timing.image_seconds:
            self._image.observe(timing.image_seconds)

    def ended(self, outcome: str) -> None:
        """Count a request without an answer: ``refused``, ``failed``, ``cancelled`` or ``timeout``."""
        self._requests.labels(outcome).inc()

    def text(self) -> bytes:
        """All counters as a scrape reads them."""
        return bytes(self._prometheus.generate_latest(self._registry))
