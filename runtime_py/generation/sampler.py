"""From the logits of one position to the next token: repetition penalty, temperature, top-k, top-p, then a draw.

The order and the meaning of every filter are those of huggingface/transformers, src/transformers/generation/
logits_process.py; temperature 0 takes the largest logit after the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.errors import PackageError, UsageError

RANDOM_SEED = -1
"""The seed that stands for none, as in llama.cpp and Ollama."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for greedy.
        top_k: keep the k largest logits; 0 for all.
        top_p: keep the most likely tokens that together reach this probability; 1 for all.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens already in the answer.
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
    """Chooses one answer's tokens; holds the random state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(None if sampling.seed == RANDOM_SEED else sampling.seed)

    def choose(self, logits: np.ndarray, answer: Sequence[int]) -> int:
        """The next token from float (vocabulary,) logits, given the answer's tokens so far.

        Raises:
            PackageError: a logit is NaN or infinity, so that any choice would be meaningless.
        """
        if not np.isfinite(logits).all():
            raise PackageError(
                f"{int((~np.isfinite(logits)).sum())} of {logits.size} logits are not finite after {len(answer)} tokens",
                "finite numbers",
                "run python -m parity_tests --package on this package to find the stage that overflows",
            )
        if self.sampling.temperature == 0.0 and self.sampling.repetition_penalty == 1.0:
            return int(logits.argmax())
        # float64: the sums below run over a whole vocabulary
        scores = penalise(logits.astype(np.float64), answer, self.sampling.repetition_penalty)
        if self.sampling.temperature == 0.0:
            return int(scores.argmax())
        scores = filtered(scores, self.sampling)
        left = _left(scores)
        edges = np.cumsum(softmax(scores[left]))
        # the last edge is the sum as rounded, not 1; a draw that rounds up to it still names a token
        place = min(np.searchsorted(edges, self._random.random() * edges[-1], side="right"), left.size - 1)
        return int(left[place])


def filtered(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Temperature, top-k and top-p in this order; what is dropped becomes minus infinity."""
    return keep_top_p(keep_top_k(scores / sampling.temperature, sampling.top_k), sampling.top_p)


def penalise(scores: np.ndarray, tokens: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive and multiply negative scores of ``tokens`` by ``penalty``, once however often one occurs."""
    if penalty == 1.0 or not tokens:
        return scores
    chosen = np.unique(np.asarray(tokens, dtype=np.int64))
    out = scores.copy()
    out[chosen] = np.where(scores[chosen] < 0, scores[chosen] * penalty, scores[chosen] / penalty)
    return out


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
    order = np.argsort(-scores[left], kind="stable")
    reached = np.cumsum(softmax(scores[left])[order])
    count = int(np.searchsorted(reached, share, side="left")) + 1
    out = np.full_like(scores, -np.inf)
    kept = left[order[:count]]
    out[kept] = scores[kept]
    return out


def _left(scores: np.ndarray) -> np.ndarray:
    """Indices that no filter dropped: top-k leaves few of a vocabulary, which is slow to sort and to exponentiate."""
    return np.flatnonzero(scores > -np.inf)


def softmax(scores: np.ndarray) -> np.ndarray:
    """float64 probabilities of finite or minus-infinite scores."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
