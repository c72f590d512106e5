"""The reference's answer in short, kept in a package's manifest, so that it can be checked without the checkpoint.

Of every probe some evenly spread values are kept; of logits, the best few of every step. The reference is the one the
package was judged against: dequantised where the package is quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from export.package.sample_questions import PROMPTS, drawn_pictures
from parity_tests.judging.compare import compare_arrays
from parity_tests.judging.metrics import LOGITS, Kind, measure
from parity_tests.judging.probes import Question, Recording, base_name
from parity_tests.judging.results import Measurement
from runtime_py.errors import PackageError

BEST = 8
"""Tokens of every step whose logits are kept, to tell a tie from a fault."""

VALUES = 64
DIGITS = 9
"""Significant digits kept: enough to give every float32 back."""


def keep(question: Question, recording: Recording) -> dict[str, Any]:
    """A JSON object with the question's ids and a few values of every probe."""
    assert recording.fed is not None and recording.greedy_logits is not None
    arrays = {
        name: _thin(array)
        for name, array in recording.flattened().items()
        if base_name(name) not in ("greedy_ids", "drawn_ids")
    }
    return {
        "question": question.name,
        "input_ids": question.input_ids[0].tolist(),
        "fed": recording.fed[0].tolist(),
        "greedy_ids": recording.arrays["greedy_ids"][0].tolist(),
        "best": [_best(row) for row in recording.greedy_logits[0]],
        "values": arrays,
    }


def _best(row: np.ndarray) -> list[list[float]]:
    """[token, logit] of the first few tokens of one step."""
    order = np.argsort(-row, kind="stable")[:BEST]
    return [[int(token), float(f"{row[token]:.{DIGITS}g}")] for token in order]


def step_logits(sample: Mapping[str, Any]) -> np.ndarray:
    """(1, steps, vocabulary) logits where only the kept tokens have theirs; all others lie at the mean of the kept values,
    so that what a row's tokens have in common is about what it was, and none above the kept tokens of its step.
    """
    kept = sample["values"]["step_logits"]
    lowest = min(logit for row in sample["best"] for _, logit in row)
    rows = np.full((1, len(sample["best"]), kept["shape"][-1]), min(float(np.mean(kept["values"])), lowest))
    for step, row in enumerate(sample["best"]):
        for token, logit in row:
            rows[0, step, int(token)] = logit
    return rows


def _thin(array: np.ndarray) -> dict[str, Any]:
    flat = array.ravel()
    chosen = flat[_places(flat.size)]
    return {
        "shape": list(array.shape),
        "values": [float(f"{value:.{DIGITS}g}") for value in chosen],
    }


def _places(size: int) -> np.ndarray:
    """At most VALUES evenly spread indices."""
    return np.unique(np.linspace(0, size - 1, min(size, VALUES)).astype(np.int64)) if size else np.zeros(0, np.int64)


def question(sample: Mapping[str, Any]) -> Question:
    """The question that was asked; its pictures are drawn again.

    Raises:
        PackageError: the sample names a question this version does not draw.
    """
    for name, chosen, text in PROMPTS:
        if name == sample["question"]:
            shown = tuple(drawn_pictures()[index] for index in chosen)
            return Question(name, shown, np.array([sample["input_ids"]], dtype=np.int64), text)
    raise PackageError(
        f"the recorded sample asks {sample['question']!r}",
        "one of " + ", ".join(name for name, _, _ in PROMPTS),
        "check the package with the version that made it, or give --reference",
    )


def fed(sample: Mapping[str, Any]) -> np.ndarray:
    """The tokens that the reference was fed for its step logits."""
    return np.array([sample["fed"]], dtype=np.int64)


def steps(sample: Mapping[str, Any]) -> int:
    return len(sample["greedy_ids"])


def compare(sample: Mapping[str, Any], said: Recording) -> tuple[Measurement, ...]:
    """The package's values at the kept places against the sample's, in pipeline order.

    Values picked out of logits are no distribution, and are judged as plain values.
    """
    arrays = said.flattened()
    rows = []
    for name, kept in sample["values"].items():
        expected = np.array(kept["values"], dtype=np.float32)
        array = arrays.get(name)
        if array is not None and list(array.shape) == kept["shape"]:
            array = array.ravel()[_places(array.size)]
        row = compare_arrays(name, expected, array, said.absent.get(base_name(name) or name, ""))
        if row.kind in LOGITS:
            picked = measure(Kind.FEATURES, expected, array) if array is not None and array.shape == expected.shape else {}
            row = replace(row, kind=Kind.FEATURES, metrics=picked)
        rows.append(row)
    rows.append(
        compare_arrays(
            "greedy_ids", np.array([sample["greedy_ids"]]), arrays.get("greedy_ids"), step_logits=step_logits(sample)
        )
    )
    return tuple(rows)
