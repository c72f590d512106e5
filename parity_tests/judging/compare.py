"""Two recordings to measurements: arrays are paired by probe name, and what cannot be paired says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity_tests.judging.drawn import drawn_margin
from parity_tests.judging.metrics import LOGITS, Kind, centred, kl_divergence, measure, relative_to, split_margin
from parity_tests.judging.probes import DRAWN, PROBES, REQUIRED, Recording, base_name
from parity_tests.judging.results import Measurement


def compare_recordings(reference: Recording, candidate: Recording) -> tuple[Measurement, ...]:
    """One measurement for every array of the reference, in pipeline order; a prompt's logits in two, pictures and text."""
    expected, actual = reference.flattened(), candidate.flattened()
    if reference.picture_rows is not None and "prefill_logits" in expected:
        expected, actual = (_parted(arrays, reference.picture_rows) for arrays in (expected, actual))
    logits = reference.greedy_logits
    return tuple(
        compare_drawn(reference, array, actual.get(name))
        if name == DRAWN
        else compare_arrays(name, array, actual.get(name), candidate.absent.get(base_name(name) or name, ""), logits)
        for name, array in expected.items()
    )


def _parted(arrays: dict[str, np.ndarray], pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays with ``prefill_logits`` (1, tokens, vocabulary) cut into picture rows and text, where both exist."""
    whole = arrays.get("prefill_logits")
    if whole is None or whole.shape[1] != len(pictures) or not pictures.any() or pictures.all():
        return arrays
    parts = {"picture_logits": whole[:, pictures], "prefill_logits": whole[:, ~pictures]}
    return {
        name: array for key in arrays for name, array in (parts if key == "prefill_logits" else {key: arrays[key]}).items()
    }


def compare_drawn(reference: Recording, expected: np.ndarray, actual: np.ndarray | None) -> Measurement:
    """The measurement of two drawn answers."""
    measured = compare_arrays(DRAWN, expected, actual)
    scores, sampling = reference.drawn_scores, reference.sampling
    if actual is None or measured.problem or scores is None or sampling is None:
        return measured
    margin = drawn_margin(expected[0], actual[0], scores, sampling)
    tied = {"split_margin": margin, "split_relative": relative_to(margin, centred(scores))}
    return replace(measured, metrics={**measured.metrics, **tied})


def compare_arrays(
    name: str,
    expected: np.ndarray,
    actual: np.ndarray | None,
    absent: str = "",
    step_logits: np.ndarray | None = None,
    probe: str | None = None,
) -> Measurement:
    """One measurement.

    Args:
        name: the name to report.
        absent: why ``actual`` is None.
        step_logits: (1, steps, vocabulary) behind the expected tokens, to tell a tie from a fault.
        probe: the probe it is, when the name does not say so.
    """
    entry = PROBES[probe or base_name(name) or name]
    required = entry.name in REQUIRED
    shape = tuple(expected.shape)
    if actual is None:
        reason = absent or "the candidate gave no such array"
        return Measurement(name, entry.stage, entry.kind, shape, not_probed=reason, required=required)
    if actual.shape != expected.shape:
        problem = f"shape {list(actual.shape)} instead of {list(shape)}"
        return Measurement(name, entry.stage, entry.kind, shape, problem=problem, required=required)
    metrics = measure(entry.kind, expected, actual)
    if entry.kind is Kind.TOKENS and step_logits is not None:
        metrics["split_margin"] = split_margin(expected[0], actual[0], step_logits[0])
        metrics["split_relative"] = relative_to(metrics["split_margin"], centred(step_logits))
    series = positions(entry.kind, expected, actual)
    return Measurement(name, entry.stage, entry.kind, shape, metrics, required=required, series=series)


def positions(kind: Kind, expected: np.ndarray, actual: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Figures per position, four significant digits: KL and same first token of logits, both sides' ids of tokens."""
    if kind in LOGITS:
        same = np.argmax(expected, axis=-1) == np.argmax(actual, axis=-1)
        kl = kl_divergence(expected, actual).ravel()
        return {"kl": tuple(float(f"{value:.4g}") for value in kl), "top1": tuple(map(float, same.ravel()))}
    if kind is Kind.TOKENS:
        sides = {"reference": expected, "candidate": actual}
        return {side: tuple(map(float, ids.ravel())) for side, ids in sides.items()}
    return {}
