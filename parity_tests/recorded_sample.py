"""The reference's answer in short, kept in a package's manifest, so that it can be checked without the checkpoint.

Of every probe some evenly spread values are kept; of logits, the best few of every step. The reference is the one the
package was judged against: dequantised where the package is quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.compare import compare_arrays
from parity_tests.package_questions import PROMPTS, drawn_pictures
from parity_tests.probes import Question, Recording, base_name
from parity_tests.results import Measurement
from runtime_py.errors import PackageError

VALUES = 64
DIGITS = 5
"""Significant digits kept; half a unit of the last is 5e-6 of the value, below every limit for packages."""


def keep(question: Question, recording: Recording) -> dict[str, Any]:
    """A JSON object with the question's ids and a few values of every probe."""
    arrays = {name: _thin(array) for name, array in recording.flattened().items() if base_name(name) != "greedy_ids"}
    return {
        "question": question.name,
        "input_ids": question.input_ids[0].tolist(),
        "greedy_ids": recording.arrays["greedy_ids"][0].tolist(),
        "values": arrays,
    }


def _thin(array: np.ndarray) -> dict[str, Any]:
    flat = array.ravel()
    chosen = flat[_places(flat.size)]
    scale = float(np.abs(flat).max()) if flat.size else 0.0
    return {
        "shape": list(array.shape),
        "largest": float(f"{scale:.{DIGITS}g}"),
        "values": [float(f"{value:.{DIGITS}g}") for value in chosen],
    }


def _places(size: int) -> np.ndarray:
    """Evenly spread indices, coprime steps aside: at most VALUES of them."""
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


def tokens(sample: Mapping[str, Any]) -> np.ndarray:
    return np.array([sample["greedy_ids"]], dtype=np.int64)


def steps(sample: Mapping[str, Any]) -> int:
    return len(sample["greedy_ids"])


def compare(sample: Mapping[str, Any], said: Recording) -> tuple[Measurement, ...]:
    """The package's values at the kept places against the sample's, in pipeline order."""
    found = said.flattened()
    rows = []
    for name, kept in sample["values"].items():
        expected = np.array(kept["values"], dtype=np.float32)
        array = found.get(name)
        if array is not None and list(array.shape) == kept["shape"]:
            array = array.ravel()[_places(array.size)]
        rows.append(compare_arrays(name, expected, array, said.absent.get(base_name(name) or name, "")))
    rows.append(compare_arrays("greedy_ids", tokens(sample), found.get("greedy_ids")))
    return tuple(rows)
