"""From the logits of one position to the next token: repetition penalty, temperature, top-k, top-p, then a draw.

The order and the meaning of every filter are those of huggingface/transformers, src/transformers/generation/
logits_process.py; temperature 0 takes the largest logit after the penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.errors import PackageError, UsageError

RANDOM_SEED = -1
"""The seed that stands for none, as in llama.cpp and Ollama."""

GROUP = 128
"""Scores whose largest stands for them while the best of a vocabulary are looked for."""

FIRST = 256
"""Of the best scores, how many are sorted before it is known whether they suffice."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for greedy.
        top_k: keep the k largest logits; 0 for all.
        top_p: keep the most likely tokens that together reach this probability; 1 for all.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens already in the answer, and of
            the prompt's where the family's published code counts them (`runtime_py.preprocess.base.Layout.penalised_ids`).
        seed: equal seeds give equal answers on one machine; None and -1 draw afresh.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            text
            for fits, text in (
                (0.0 <= self.temperature < float("inf"), f"temperature {self.temperature}: 0 or more"),
                (self.top_k >= 0, f"top-k {self.top_k}: 0 or more"),
                (0.0 < self.top_p <= 1.0, f"top-p {self.top_p}: above 0 and at most 1"),
                (0.0 < self.repetition_penalty < float("inf"), f"repetition penalty {self.repetition_penalty}: above 0"),
                (
                    self.seed is None or self.seed >= RANDOM_SEED,
                    f"seed {self.seed}: 0 or more, or {RANDOM_SEED} to draw one",
                ),
            )
            if not fits
        ]
        if wrong:
            raise UsageError("sampling settings out of range", "; ".join(wrong), "correct them")


class Sampler:
    """Chooses one answer's tokens; holds the random state.

    Args:
        penalised: int64 (ids,), tokens that the repetition penalty counts beside the answer's; None for none.
    """

    def __init__(self, sampling: Sampling, penalised: np.ndarray | None = None) -> None:
        self.sampling = sampling
        self._penalised = np.zeros(0, np.int64) if penalised is None else penalised
        self._random = np.random.default_rng(None if sampling.seed == RANDOM_SEED else sampling.seed)

    def choose(self, logits: np.ndarray, answer: Sequence[int]) -> int:
        """The next token from float (vocabulary,) logits, given the answer's tokens so far.

        Raises:
            PackageError: a logit is NaN or infinity, so that any choice would be meaningless.
        """
        best = int(logits.argmax())  # the first NaN, where there is one
        if not (math.isfinite(logits[best]) and math.isfinite(logits[logits.argmin()])):
            raise PackageError(
                f"{int((~np.isfinite(logits)).sum())} of {logits.size} logits are not finite after {len(answer)} tokens",
                "finite numbers",
                "run python -m parity_tests --package on this package to find the stage that overflows",
            )
        sampling, seen = self.sampling, np.zeros(0, np.int64)
        if sampling.repetition_penalty != 1.0:
            seen = np.concatenate([self._penalised, np.asarray(answer, dtype=np.int64)])
        if sampling.temperature == 0.0:
            return best_penalised(logits, seen, sampling.repetition_penalty, best)
        tokens = likely(logits, seen, sampling.top_k)
        if tokens is not None:
            logits, seen = logits[tokens], np.searchsorted(tokens, seen)
        # float64: the sums below may run over a whole vocabulary
        scores = filtered(penalise(logits.astype(np.float64), seen, sampling.repetition_penalty), sampling)
        left = _left(scores)
        edges = np.cumsum(softmax(scores[left]))
        # the last edge is the sum as rounded, not 1; a draw that rounds up to it still names a token
        place = min(np.searchsorted(edges, self._random.random() * edges[-1], side="right"), left.size - 1)
        return int(left[place] if tokens is None else tokens[left[place]])


def best_penalised(logits: np.ndarray, seen: np.ndarray, penalty: float, best: int) -> int:
    """The first of the largest scores that `penalise` makes; ``best`` is that of the logits.

    Nothing is computed for tokens that were not seen: theirs are the logits.
    """
    if not len(seen) or (penalty >= 1.0 and best not in seen):  # those that changed only got less
        return best
    others = logits.copy()
    others[seen] = -np.inf
    other = int(others.argmax())
    scores = penalised(logits[seen].astype(np.float64), penalty)
    most, rest = scores.max(), float(others[other])
    mine = int(seen[scores == most].min())
    return mine if most > rest or (most == rest and mine < other) else other


def likely(logits: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray | None:
    """Ascending int64 indices, among them every token that can be one of the ``count`` largest whatever becomes of those
    seen; None where all tokens can, and for a count of 0, which means all.
    """
    if count == 0 or count + len(seen) >= logits.size:
        return None
    others = logits.copy()
    others[seen] = -np.inf
    near = others >= _reached(others, count)
    near[seen] = True
    return np.flatnonzero(near)


def _reached(values: np.ndarray, count: int) -> Any:
    """A value that at least ``count`` reach, found among the largest of groups where there are more of these."""
    groups = values.size // GROUP
    if groups > count:
        values = values[: groups * GROUP].reshape(GROUP, groups).max(axis=0)
    return np.partition(values, -count)[-count]


def filtered(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, top-k and top-p in this order; what is dropped becomes minus infinity."""
    return keep_top_p(keep_top_k(cooled(scores, sampling.temperature), sampling.top_k), sampling.top_p)


def cooled(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores divided by the temperature; from the best on where a tiny one makes them too large for a number."""
    with np.errstate(over="ignore"):
        divided = scores / temperature
        return divided if np.isfinite(divided.max()) else (scores - scores.max()) / temperature


def penalise(scores: np.ndarray, tokens: Sequence[int] | np.ndarray, penalty: float) -> np.ndarray:
    """Divide positive and multiply negative scores of ``tokens`` by ``penalty``, once however often one occurs."""
    if penalty == 1.0 or not len(tokens):
        return scores
    chosen = np.asarray(tokens, dtype=np.int64)
    out = scores.copy()
    out[chosen] = penalised(scores[chosen], penalty)
    return out


def penalised(scores: np.ndarray, penalty: float) -> np.ndarray:
    """Positive scores divided by ``penalty``, negative ones multiplied."""
    return np.where(scores < 0, scores * penalty, scores / penalty)


def keep_top_k(scores: np.ndarray, count: int) -> np.ndarray:
    """Drop every score below the count-th largest; ties with it stay."""
    if count == 0 or count >= scores.size:
        return scores
    threshold = np.partition(scores, -count)[-count]
    return np.where(scores < threshold, -np.inf, scores)


def keep_top_p(scores: np.ndarray, share: float) -> np.ndarray:
    """Keep the smallest set of most likely tokens whose probabilities reach ``share``; at least one stays."""
    if share >= 1.0:
        return scores
    left = _left(scores)
    values, weights = scores[left], softmax(scores[left])
    count, order, reached = FIRST, np.zeros(0, np.int64), np.zeros(1)
    while len(order) < left.size and reached[-1] < share:  # few of them reach it, as a rule: not all are sorted
        near = np.flatnonzero(values >= _reached(values, count)) if count < left.size else np.arange(left.size)
        order = near[np.argsort(-values[near], kind="stable")]
        reached = np.cumsum(weights[order])
        count *= 8
    kept = left[order[: int(np.searchsorted(reached, share, side="left")) + 1]]
    out = np.full_like(scores, -np.inf)
    out[kept] = scores[kept]
    return out


def _left(scores: np.ndarray) -> np.ndarray:
    """Indices that no filter dropped: top-k leaves few of a vocabulary, which is slow to sort and to exponentiate."""
    return np.flatnonzero(scores > -np.inf)


def softmax(scores: np.ndarray) -> np.ndarray:
    """float64 probabilities of finite or minus-infinite scores."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
