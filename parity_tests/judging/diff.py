"""Two stored runs side by side: what got better, what got worse, and whether that counts.

"Worse in a judged way" is any of: the verdict of the run falls; a figure that was within its limit no longer is; a figure
that was judged no longer is; a figure outside its limit both times is a tenth further outside; task accuracy falls by more
points than allowed. Everything else is told and does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from parity_tests.judging.accuracy import ALL_FIVE
from parity_tests.judging.judge import JudgedProbe, Judgement, Verdict
from parity_tests.judging.metrics import HIGHER_IS_BETTER
from parity_tests.judging.results import encode

NOISE = 0.02
"""Changes of a figure by less than this share are called the same."""

FLOOR = 1e-7
"""So are errors that are both below float32's own rounding."""

FURTHER = 1.1
"""A figure that is outside its limit in both runs counts as worse from this factor on."""

TASK_POINTS = 1.0
"""Points of task accuracy that may be lost."""


class Change(StrEnum):
    """What became of one figure."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    NEW = "new"
    GONE = "gone"


@dataclass(frozen=True)
class Row:
    """One figure in both runs.

    Attributes:
        place: comparison, question, probe and metric.
        before, after: its values; None where there is none.
        limit: in the second run, or in the first where the second has none.
        verdicts: of this figure in both runs.
        counts: why this is worse in a judged way; "" when it is not.
    """

    place: tuple[str, str, str, str]
    before: float | None
    after: float | None
    limit: float | None
    verdicts: tuple[str, str]
    change: Change
    counts: str = ""


@dataclass(frozen=True)
class Difference:
    """Two judged runs, compared."""

    before: Judgement
    after: Judgement
    rows: tuple[Row, ...]
    accuracy: tuple[Row, ...]
    reasons: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether the second run is worse in a judged way."""
        return bool(self.reasons)


def difference(before: Judgement, after: Judgement, task_points: float = TASK_POINTS) -> Difference:
    """Compare two judged runs; both are best judged under the same limits."""
    first, second = _figures(before), _figures(after)
    rows = tuple(_row(place, first.get(place), second.get(place)) for place in dict.fromkeys([*first, *second]))
    accuracy = tuple(
        _accuracy(name, before, after, task_points) for name in dict.fromkeys([*before.run.accuracy, *after.run.accuracy])
    )
    reasons = []
    order = [Verdict.PASS, Verdict.NOT_RUN, Verdict.FAIL]
    if order.index(after.verdict) > order.index(before.verdict):
        reasons.append(f"the verdict was {before.verdict} and is {after.verdict}")
    reasons += [f"{' '.join(filter(None, row.place))}: {row.counts}" for row in (*rows, *accuracy) if row.counts]
    return Difference(before, after, rows, accuracy, tuple(reasons))


@dataclass(frozen=True)
class _Figure:
    value: float | None
    limit: float | None
    verdict: str


def _figures(judgement: Judgement) -> dict[tuple[str, str, str, str], _Figure]:
    """Every metric of every probe, and a row of its own for a probe that has none."""
    figures = {}
    for judged in judgement.comparisons:
        for probe in judged.probes:
            place = (judged.comparison.title, judged.comparison.question, probe.measurement.probe)
            for metric in probe.measurement.metrics:
                figures[(*place, metric)] = _figure(probe, metric)
            if not probe.measurement.metrics:
                figures[(*place, "")] = _Figure(None, None, str(probe.verdict))
    return figures


def _figure(probe: JudgedProbe, metric: str) -> _Figure:
    limit = next((limit for limit in probe.limits if limit.metric == metric), None)
    verdict = Verdict.REPORTED if limit is None else Verdict.FAIL if limit in probe.broken else Verdict.PASS
    return _Figure(probe.measurement.metrics[metric], None if limit is None else limit.bound, str(verdict))


def _row(place: tuple[str, str, str, str], before: _Figure | None, after: _Figure | None) -> Row:
    values = (before.value if before else None, after.value if after else None)
    verdicts = (before.verdict if before else "absent", after.verdict if after else "absent")
    limit = after.limit if after and after.limit is not None else before.limit if before else None
    change = _change(place[3], *values) if before and after else Change.GONE if before else Change.NEW
    return Row(place, *values, limit, verdicts, change, _counts(place[3], values, verdicts, limit))


def _change(metric: str, before: float | None, after: float | None) -> Change:
    if before is None or after is None:
        return Change.SAME if before is after else Change.NEW if before is None else Change.GONE
    if before == after or (abs(before) < FLOOR and abs(after) < FLOOR):
        return Change.SAME
    higher = HIGHER_IS_BETTER[metric]
    a, b = (1 - before, 1 - after) if higher and max(before, after) <= 1 else (before, after)
    if max(abs(a), abs(b)) < FLOOR or abs(a - b) <= NOISE * max(abs(a), abs(b)):
        return Change.SAME
    return Change.BETTER if (after > before) == higher else Change.WORSE


def _counts(metric: str, values: tuple[float | None, float | None], verdicts: tuple[str, str], limit: float | None) -> str:
    """Why this figure makes the second run worse, or ""."""
    was, now = verdicts
    if now == Verdict.FAIL and was != Verdict.FAIL:
        return f"was {was} and fails now"
    if was == Verdict.PASS and now in ("absent", Verdict.NOT_PROBED):
        return "was judged and is not any more"
    before, after = values
    if was == now == Verdict.FAIL and limit is not None and before is not None and after is not None:
        far = [limit - value if HIGHER_IS_BETTER[metric] else value - limit for value in (before, after)]
        if far[1] > FURTHER * far[0] or math.isnan(after):
            return f"further outside its limit: {before:.3g}, then {after:.3g}"
    return ""


def _accuracy(name: str, before: Judgement, after: Judgement, points: float) -> Row:
    """A task figure; only the main one counts, and only when both runs have it or the first alone."""
    a, b = before.run.accuracy.get(name), after.run.accuracy.get(name)
    change = Change.NEW if a is None else Change.GONE if b is None else Change.SAME
    if a is not None and b is not None and a != b:
        change = Change.BETTER if b > a else Change.WORSE
    counts = ""
    if name == ALL_FIVE and a is not None:
        if b is None:
            counts = "task accuracy was measured and is not any more"
        elif 100 * (a - b) > points + 1e-9:
            counts = f"{100 * (a - b):.1f} points lost, {points:g} allowed"
    return Row(("task accuracy", "", name, ""), a, b, None, ("reported", "reported"), change, counts)


def to_json(difference: Difference) -> Mapping[str, Any]:
    """The JSON object that ``--json`` writes; described in docs/parity_reports.md."""

    def number(value: float | None) -> float | str | None:
        return None if value is None else encode(value)

    def rows(given: tuple[Row, ...]) -> list[dict[str, Any]]:
        return [
            {
                **dict(zip(("comparison", "question", "probe", "metric"), row.place, strict=True)),
                "before": number(row.before),
                "after": number(row.after),
                "limit": number(row.limit),
                "verdicts": list(row.verdicts),
                "change": str(row.change),
                "counts": row.counts or None,
            }
            for row in given
        ]

    return {
        "schema": 1,
        "worse": difference.worse,
        "reasons": list(difference.reasons),
        "runs": [
            {
                "case": judgement.run.case,
                "family": judgement.run.family,
                "target": judgement.run.target,
                "precision": judgement.run.precision,
                "verdict": str(judgement.verdict),
                "first_failure": judgement.first_failure or None,
            }
            for judgement in (difference.before, difference.after)
        ],
        "figures": rows(difference.rows),
        "accuracy": rows(difference.accuracy),
    }
