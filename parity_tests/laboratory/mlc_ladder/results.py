"""What a rung reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

import numpy as np

from parity_tests.judging.metrics import Kind
from parity_tests.judging.standards import Standard
from parity_tests.thresholds import limits

ROUNDING = limits(Standard.STORED_FLOAT32, Kind.LOGITS)[0].bound
"""Largest allowed difference over the largest value: equal stored numbers, float32 arithmetic on both sides."""


class Status(StrEnum):
    """A rung that could not run is never a pass."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class RungResult:
    """One rung; ``detail`` is the figure or the reason, ``figures`` the numbers by name."""

    rung: str
    status: Status
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class CannotRun(Exception):
    """A rung lacks a program or package; the message names it and how to get it."""


def compare(rung: str, expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> RungResult:
    """Every array of ``expected`` against ``found``: integers equal, floats within ROUNDING of the largest value."""
    figures, wrong = {}, []
    for name, array in expected.items():
        other = actual.get(name)
        if other is None or other.shape != array.shape:
            wrong.append(f"{name}: {None if other is None else other.shape} instead of {array.shape}")
            continue
        if array.dtype.kind in "iu":
            figures[name] = float((array != other).sum())
            bound = 0.0
        else:
            figures[name] = float(np.abs(array - other).max() / max(np.abs(array).max(), 1e-30))
            bound = ROUNDING
        if not figures[name] <= bound:
            wrong.append(f"{name}: {figures[name]:.2e} above {bound:.0e}")
    if wrong:
        return RungResult(rung, Status.FAIL, "; ".join(wrong), figures)
    worst = max(figures, key=lambda name: figures[name])
    return RungResult(
        rung, Status.PASS, f"{len(figures)} arrays, largest relative difference {figures[worst]:.1e} ({worst})", figures
    )
