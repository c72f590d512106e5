"""How likely a token was, and tokens that wait to be told it.

A likelihood is several passes over a vocabulary. It decides nothing, so whoever hands tokens on may tell it while the
decoder is at work on the next ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime_py.engine.answer import Answer, Likelihood, Token
from runtime_py.errors import EdgeproofError

LANES = 64
"""Exponentials that are added in float32: few enough to lose nothing that a logarithm shows."""

Event = Token | Answer | EdgeproofError
"""Tokens as they come, and at last the answer, or the error that ended it."""


@dataclass(frozen=True)
class Untold:
    """A token whose likelihood is wanted.

    Attributes:
        logits: float32 (vocabulary,) that it was chosen from, before sampling changed them.
        count: how many of the likeliest tokens are told.
    """

    id: int
    text: str
    logits: np.ndarray
    count: int


Sent = Event | Untold
"""What an answer sends (`runtime_py.engine.running.Running`)."""


def told(sent: Sent) -> Event:
    """The event, with the likelihood that is wanted of it."""
    if not isinstance(sent, Untold):
        return sent
    return Token(sent.id, sent.text, likelihood(sent.logits, sent.id, sent.count))


def likelihood(logits: np.ndarray, token: int, count: int) -> Likelihood:
    """Of a token and of the ``count`` likeliest, from float32 (vocabulary,) logits."""
    all_of_them = log_of_sum(logits)
    count = min(count, logits.size)
    left = np.flatnonzero(logits >= np.partition(logits, -count)[-count]) if count else np.zeros(0, np.int64)
    best = left[np.argsort(-logits[left], kind="stable")[:count]]
    top = tuple((int(index), float(logits[index]) - all_of_them) for index in best)
    return Likelihood(float(logits[token]) - all_of_them, top)


def log_of_sum(logits: np.ndarray) -> float:
    """Logarithm of the sum of the exponentials of float32 (vocabulary,) logits, a ten-millionth off.

    Every told likelihood of every row takes one, over the whole vocabulary: exponentials in float32, added in columns of
    `LANES` in float32 and then in float64, take six tenths of the time of one sum in float64.
    """
    largest = logits.max()
    weights = logits - largest
    np.exp(weights, out=weights)
    whole = weights.size - weights.size % LANES
    columns = weights[:whole].reshape(LANES, -1).sum(axis=0)
    return float(largest) + math.log(float(columns.sum(dtype=np.float64) + weights[whole:].sum(dtype=np.float64)))
