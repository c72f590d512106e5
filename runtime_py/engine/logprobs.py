"""Log-probabilities of an answer's tokens, as ``logprobs`` of OpenAI's interface, computed while the decoder is at work.

A log-probability takes several passes over a vocabulary and decides nothing. So the engine sends a `DeferredToken`, and
whoever hands events on calls `resolve`, beside the next decoder call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime_py.engine.answer import Answer, Token, TokenLogprobs
from runtime_py.errors import EdgeproofError

LANES = 64
"""Exponentials that are added in float32: few enough to lose nothing that a logarithm shows."""

Event = Token | Answer | EdgeproofError
"""Tokens as they come, and at last the answer, or the error that ended it."""


@dataclass(frozen=True)
class DeferredToken:
    """A token whose log-probabilities are not computed yet.

    Attributes:
        logits: float32 (vocabulary,) that it was chosen from, before sampling changed them.
        top: how many of the likeliest tokens are reported beside it.
    """

    id: int
    text: str
    logits: np.ndarray
    top: int


EngineEvent = Event | DeferredToken
"""What `runtime_py.engine.running.Running` sends."""


def resolve(event: EngineEvent) -> Event:
    """The event itself; of a deferred token the token with its log-probabilities."""
    if not isinstance(event, DeferredToken):
        return event
    return Token(event.id, event.text, token_logprobs(event.logits, event.id, event.top))


def token_logprobs(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """The log-probability of a token and those of the ``top`` likeliest ones, from float32 (vocabulary,) logits."""
    normaliser = log_sum_exp(logits)
    top = min(top, logits.size)
    candidates = np.flatnonzero(logits >= np.partition(logits, -top)[-top]) if top else np.zeros(0, np.int64)
    best = candidates[np.argsort(-logits[candidates], kind="stable")[:top]]
    return TokenLogprobs(
        float(logits[token]) - normaliser, tuple((int(index), float(logits[index]) - normaliser) for index in best)
    )


def log_sum_exp(logits: np.ndarray) -> float:
    """log(sum(exp(logits))) of float32 (vocabulary,) logits, to a relative error of about 1e-7.

    Exponentials are taken in float32 and added in columns of `LANES` in float32, then in float64: six tenths of the time of
    one sum in float64.
    """
    largest = logits.max()
    weights = logits - largest
    np.exp(weights, out=weights)
    whole = weights.size - weights.size % LANES
    columns = weights[:whole].reshape(LANES, -1).sum(axis=0)
    return float(largest) + math.log(float(columns.sum(dtype=np.float64) + weights[whole:].sum(dtype=np.float64)))
