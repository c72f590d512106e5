"""Answers under a model's or an engine's sampling defaults, drawn by both sides with the same random numbers.

A draw is the largest of the scores plus noise (Gumbel's, which is sampling from their softmax), and the noise of a step is
the same for everyone. So two sides that compute the same logits draw the same answer, and where answers part, the gap
between the two tokens says how far a logit must be off for it, as it does for greedy answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from parity_tests.judging.metrics import equal_prefix
from runtime_py.generation.sampler import Sampling, filtered, keep_top_k, penalise, softmax

SEED = 20240229


class SamplingMode(StrEnum):
    """Whose defaults an answer is made with."""

    GREEDY = "greedy"  # nobody's: the largest logit
    ENGINE = "engine"  # what an app's own engine knows of the model's: temperature and top-p
    MODEL = "model"  # all of the model's own


def sampling_of(mode: SamplingMode, generation: Mapping[str, Any]) -> Sampling | None:
    """The settings of a mode for a manifest's ``generation``; None for greedy answers."""
    if mode is SamplingMode.GREEDY:
        return None
    temperature, top_p = float(generation["temperature"]), float(generation["top_p"])
    known = Sampling(temperature=temperature, top_p=top_p if temperature else 1.0)
    if mode is SamplingMode.ENGINE:
        return known
    penalty, top_k = float(generation["repetition_penalty"]), int(generation["top_k"])
    return Sampling(temperature, top_k if temperature else 0, known.top_p, penalty)


def described(sampling: Sampling) -> str:
    """The settings in words, those that do nothing left out."""
    if sampling.temperature == 0.0:
        told = ["greedy"]
    else:
        told = [f"temperature {sampling.temperature:g}"]
        told += [f"top-k {sampling.top_k}"] if sampling.top_k else []
        told += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1.0 else []
    told += [f"repetition penalty {sampling.repetition_penalty:g}"] if sampling.repetition_penalty != 1.0 else []
    return ", ".join(told)


def draw(scores: np.ndarray, sampling: Sampling, step: int) -> int:
    """The token of a step from its penalised logits (vocabulary,)."""
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    return int((filtered(scores, sampling) + _noise(step, scores.size)).argmax())


def drawn_scores(logits: np.ndarray, seen: Sequence[int] | np.ndarray, sampling: Sampling) -> np.ndarray:
    """float64 (vocabulary,) logits of a step after the repetition penalty of what was ``seen``, which `draw` takes."""
    return penalise(logits.astype(np.float64), seen, sampling.repetition_penalty)


def drawn_margin(tokens: np.ndarray, candidate: np.ndarray, scores: np.ndarray, sampling: Sampling) -> float:
    """How far two logits must be apart from the reference's for the candidate to draw its other token, at the first place
    where the answers part; 0 when they are equal.

    Args:
        tokens, candidate: drawn ids of the reference and the candidate, (steps,).
        scores: (steps, vocabulary), the reference's penalised logits.
    """
    place = equal_prefix(tokens, candidate)
    if place == len(tokens) == len(candidate):
        return 0.0
    row, ours, theirs = scores[place], int(tokens[place]), int(candidate[place])
    if sampling.temperature == 0.0:
        return float(row[ours] - row[theirs]) / sampling.repetition_penalty
    noisy = row + sampling.temperature * _noise(place, row.size)
    gap = float(noisy[ours] - noisy[theirs])
    kept = np.isfinite(filtered(row, sampling))
    entering = 0.0 if kept[theirs] else _edge(row, theirs, sampling)
    margin = min(max(gap, entering), _edge(row, ours, sampling))
    return max(margin, 0.0) / max(sampling.repetition_penalty, 1.0)


def _edge(row: np.ndarray, token: int, sampling: Sampling) -> float:
    """Gap of logits that moves a token over the edge of what is kept, to first order; inf where all is kept.

    Either it changes places with the nearest token on the other side, or the mass before it crosses top-p: logits off by
    e either way move a mass m by 2 e m (1 - m) / temperature.
    """
    kept = np.isfinite(filtered(row, sampling))
    if kept.all():
        return math.inf
    edges = [float(row[token] - row[~kept].max()) if kept[token] else float(row[kept].min() - row[token])]
    if sampling.top_p < 1.0:
        chances = softmax(keep_top_k(row / sampling.temperature, sampling.top_k))
        before = float(chances[row > row[token]].sum())
        slope = before * (1.0 - before)
        edges.append(sampling.temperature * abs(sampling.top_p - before) / slope if slope else math.inf)
    return min(edges)


def _noise(step: int, size: int) -> np.ndarray:
    return np.random.default_rng([SEED, step]).gumbel(size=size)
