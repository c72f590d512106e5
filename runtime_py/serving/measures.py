"""What is counted of answers, under the same names at both servers: by Prometheus' client here, by Triton itself there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runtime_py.engine.answer import Timing

PREFIX = "edgeproof_"
"""Of every name as it is scraped."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the buckets of every histogram."""

GAUGES = {
    "slots": "Answers that can be made at a time",
    "slots_busy": "Slots that are reading a prompt or answering",
    "requests_held": "Requests that are waiting, being prepared or being answered",
}
ENGINE_SECONDS, DECODER_SECONDS = "engine_seconds", "engine_decoder_seconds"
"""Where the engine's time went; only the server of OpenAI's interface tells them."""

REQUESTS, OUTCOME = "requests", "outcome"
"""A counter with a label."""

COUNTERS = {
    REQUESTS: "Requests by how they ended",
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


@dataclass(frozen=True)
class Observed:
    """What a finished answer adds, by name: to counters of `COUNTERS`, and seconds to histograms of `HISTOGRAMS`."""

    counts: Mapping[str, int]
    seconds: Mapping[str, float]


def observed(timing: Timing) -> Observed:
    """What an answer of these times adds; an answer of one token has no time between two, a known picture takes none."""
    seconds = {"first_token_seconds": timing.first_token_seconds, "queue_seconds": timing.queue_seconds}
    if timing.steps:
        seconds["inter_token_seconds"] = timing.decode_seconds / timing.steps
    if timing.image_seconds:
        seconds["image_seconds"] = timing.image_seconds
    counts = {
        "prompt_tokens": timing.prompt_tokens,
        "prompt_tokens_cached": timing.kept_tokens,
        "generated_tokens": timing.answer_tokens,
    }
    return Observed(counts, seconds)
