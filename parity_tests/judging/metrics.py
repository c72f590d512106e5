"""Numbers that say how far a candidate array is from a reference array; no opinion on how far is too far.

Every function takes the reference first. Differences are taken in float64. A value that is not finite on one side only
counts as infinitely far, so that a NaN can never pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

import numpy as np


class Kind(StrEnum):
    """What an array is, which decides the metrics that make sense for it."""

    PIXELS = "pixels"
    TABLE = "table"  # position tables and other constants derived from the checkpoint
    FEATURES = "features"  # hidden activations: vision, connector, block outputs
    EMBEDS = "embeds"
    LOGITS = "logits"  # of rows that are read: the prompt's last and every answer step's
    PROMPT_LOGITS = "prompt_logits"  # of a prompt's text: all but the last row only show where a fault begins
    PICTURE_LOGITS = "picture_logits"  # of a prompt's picture rows: no next token was ever trained there
    TOKENS = "tokens"
    EXACT = "exact"  # integers and masks


LOGITS = (Kind.LOGITS, Kind.PROMPT_LOGITS, Kind.PICTURE_LOGITS)
"""Next-token logits, whose rows mean the same with any constant added: all figures but `max_abs` and `mean_abs` are taken
after each row's mean is subtracted (`centred`)."""


def measure(kind: Kind, reference: np.ndarray, candidate: np.ndarray) -> dict[str, float]:
    """All metrics of one array by name; both must have the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: reference {list(reference.shape)}, candidate {list(candidate.shape)}")
    if kind in (Kind.TOKENS, Kind.EXACT):
        same = reference == candidate
        figures = {"mismatches": float(np.count_nonzero(~same)), "agreement": float(same.mean()) if same.size else 1.0}
        figures["max_abs"], figures["cosine"] = max_abs(reference, candidate), cosine(reference, candidate)
        if kind is Kind.TOKENS:
            figures["equal_prefix"] = float(equal_prefix(reference.ravel(), candidate.ravel()))
        return figures
    figures = {"max_abs": max_abs(reference, candidate), "mean_abs": mean_abs(reference, candidate)}
    if kind in LOGITS:
        divergence = kl_divergence(reference, candidate)
        figures |= {
            "kl_max": _largest(divergence),
            "kl_mean": _average(divergence),
            "kl_median": quantile(divergence, 0.5),
            "kl_p99": quantile(divergence, 0.99),
            "top1_agreement": top1_agreement(reference, candidate),
            "flipped_margin": flipped_margin(reference, candidate),
        }
        reference, candidate = centred(reference), centred(candidate)
        figures["flipped_relative"] = relative_to(figures["flipped_margin"], reference)
        figures["relative_median"] = relative_to(quantile(_row_maxima(reference, candidate), 0.5), reference)
    rows = row_cosines(reference, candidate)
    if kind in LOGITS:
        figures["median_row_cosine"] = quantile(rows, 0.5) if rows.size else 1.0
    figures |= {
        "relative_max": relative_max(reference, candidate),
        "cosine": cosine(reference, candidate),
        "worst_row_cosine": float(rows.min()) if rows.size else 1.0,
        "mean_row_cosine": float(rows.mean()) if rows.size else 1.0,
    }
    return figures


def centred(logits: np.ndarray) -> np.ndarray:
    """float64 logits (..., vocabulary) without what every token of a row has in common, which no softmax sees.

    Values that are not finite stay as they are and do not enter the mean.
    """
    wide = np.asarray(logits, np.float64)
    finite = np.isfinite(wide)
    sums = np.where(finite, wide, 0.0).sum(axis=-1, keepdims=True)
    return wide - sums / np.maximum(finite.sum(axis=-1, keepdims=True), 1)


def _difference(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """|reference - candidate| in float64; infinity where only one side is finite or the infinities differ."""
    wide_reference, wide_candidate = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide_reference - wide_candidate)
    # inf - inf and NaN - NaN are NaN, and yet no difference
    equal = (wide_reference == wide_candidate) | (np.isnan(wide_reference) & np.isnan(wide_candidate))
    return np.where(equal, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def _average(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def quantile(values: np.ndarray, share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; 0 for empty arrays."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values.size else 0.0


def max_abs(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Largest absolute difference; 0 for empty arrays."""
    return _largest(_difference(reference, candidate))


def mean_abs(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean absolute difference; 0 for empty arrays."""
    return _average(_difference(reference, candidate))


def relative_max(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute reference value, for arrays of any scale."""
    return relative_to(max_abs(reference, candidate), reference)


def _row_maxima(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """float64 (rows,): the largest absolute difference of every row of the last axis."""
    difference = _difference(reference, candidate)
    return difference.reshape(-1, difference.shape[-1]).max(axis=-1) if difference.size else np.zeros(0)


def relative_to(distance: float, reference: np.ndarray) -> float:
    """A distance over the largest absolute value of ``reference``; infinite when that is zero or not finite."""
    if distance == 0.0:
        return 0.0
    scale = _largest(np.abs(np.asarray(reference, np.float64)))
    return distance / scale if math.isfinite(scale) and scale > 0 else math.inf


def cosine(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Cosine of the angle between the two arrays as vectors; 1 when both are zero, 0 when one is or any value is not
    finite.
    """
    return float(_cosines(np.ravel(reference)[None], np.ravel(candidate)[None])[0])


def row_cosines(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """float64 (rows,) cosines over rows of the last axis: one broken token shows here and drowns in `cosine`."""
    width = reference.shape[-1] if reference.ndim else 1
    return _cosines(reference.reshape(-1, width), candidate.reshape(-1, width)) if reference.size else np.zeros(0)


def row_errors(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """float64 (rows,): length of every row's difference over the row's length, or over a tenth of the median row's.

    A few channels of a trained decoder are thousands of times the others; beside them `relative_max` sees nothing.
    """
    width = reference.shape[-1] if reference.ndim else 1
    difference = _difference(reference, candidate).reshape(-1, width)
    lengths = np.sqrt((np.asarray(reference, np.float64).reshape(-1, width) ** 2).sum(axis=1))
    floor = 0.1 * np.median(lengths) if lengths.size else 0.0
    errors = np.sqrt((difference**2).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors == 0, 0.0, errors / np.maximum(lengths, floor))


def _cosines(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    # rows that are not finite are zeroed before the products, which would make NaN and a warning of them
    broken = ~(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
    a, b = np.where(np.atleast_1d(broken)[:, None], 0.0, a), np.where(np.atleast_1d(broken)[:, None], 0.0, b)
    lengths = np.sqrt((a * a).sum(axis=1)), np.sqrt((b * b).sum(axis=1))
    product = lengths[0] * lengths[1]
    angle = (a * b).sum(axis=1) / np.where(product > 0, product, 1.0)
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    return np.where(broken, 0.0, np.where(both_zero, 1.0, np.clip(angle, -1.0, 1.0)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log of the softmax over the last axis, float64."""
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """KL(reference || candidate) in nats of the next-token distributions, one value per position (last axis gone)."""
    with np.errstate(invalid="ignore"):
        p, q = log_softmax(reference), log_softmax(candidate)
        divergence = (np.exp(p) * (p - q)).sum(axis=-1)
    return np.where(np.isfinite(divergence), np.maximum(divergence, 0.0), np.inf)


def top1_agreement(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Share of positions where both put the same token first."""
    same = np.argmax(reference, axis=-1) == np.argmax(candidate, axis=-1)
    return float(same.mean()) if same.size else 1.0


def flipped_margin(reference: np.ndarray, candidate: np.ndarray) -> float:
    """How sure the reference was where the candidate puts another token first.

    The largest gap, in reference logits, between the reference's first token and the candidate's; 0 when no position
    differs. A flip with a gap below twice the permitted logit error is a tie, not a fault.
    """
    best = np.argmax(reference, axis=-1)
    chosen = np.argmax(candidate, axis=-1)
    wide = np.asarray(reference, np.float64)
    gap = np.take_along_axis(wide, best[..., None], -1) - np.take_along_axis(wide, chosen[..., None], -1)
    gap = np.where((best != chosen)[..., None], gap, 0.0)
    return _largest(np.where(np.isnan(gap), np.inf, gap))


def equal_prefix(reference: np.ndarray, candidate: np.ndarray) -> int:
    """How many leading tokens are the same."""
    length = min(len(reference), len(candidate))
    differs = np.flatnonzero(reference[:length] != candidate[:length])
    return int(differs[0]) if differs.size else length


def split_margin(tokens: np.ndarray, candidate: np.ndarray, step_logits: np.ndarray) -> float:
    """The reference's gap between its own token and the candidate's at the first place where greedy answers part.

    Args:
        tokens, candidate: greedy ids of the reference and the candidate, (steps,).
        step_logits: (steps, vocabulary), the reference logits its tokens were taken from.

    Returns:
        0 when the answers are equal; after the first difference the two see other contexts, so nothing later counts.
    """
    place = equal_prefix(tokens, candidate)
    if place == len(tokens) == len(candidate):
        return 0.0
    if place >= min(len(tokens), len(candidate)):
        return math.inf
    row = np.asarray(step_logits[place], np.float64)
    return float(row[tokens[place]] - row[candidate[place]])


HIGHER_IS_BETTER: Mapping[str, bool] = {
    "max_abs": False,
    "mean_abs": False,
    "relative_max": False,
    "relative_median": False,
    "cosine": True,
    "worst_row_cosine": True,
    "mean_row_cosine": True,
    "median_row_cosine": True,
    "kl_max": False,
    "kl_mean": False,
    "kl_median": False,
    "kl_p99": False,
    "top1_agreement": True,
    "flipped_margin": False,
    "flipped_relative": False,
    "mismatches": False,
    "agreement": True,
    "equal_prefix": True,
    "split_margin": False,
    "split_relative": False,
    "moved_ratio": False,
    "answers_different": False,
    "tokens_different": False,
    "points_lost": False,
    "parts_not_run": False,
}
"""Every metric's direction; thresholds on any other name are refused."""
