"""Reports for programs: the judged probes of a golden case or a package, and the stored run that can be judged again.

The schemas are described in docs/parity_reports.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parity_tests.judging import run_details
from parity_tests.judging.judge import JudgedProbe, Judgement, Verdict
from parity_tests.judging.probes import base_name
from parity_tests.judging.results import Run, encode, to_json
from parity_tests.report.meaning import comparison_verdict, meaning, verdict_words
from parity_tests.report.text_file import write as write_text

SCHEMA = 1
"""Of report.json and of what ``--json`` writes; keys are only ever added under one number."""

METRIC_DIGITS = 3
"""Significant digits of every figure: the rest is noise, and differs between processors."""


def report(judgement: Judgement) -> dict[str, Any]:
    """The verdict and every comparison; what ``--json`` of ``--package`` writes."""
    run = judgement.run
    return {
        **_head(judgement),
        "divergence": _divergence(judgement),
        **details_json(run),
        "comparisons": [
            {
                "name": judged.comparison.title,
                "question": judged.comparison.question,
                "standard": str(judged.comparison.standard),
                "baseline": judged.comparison.baseline,
                "candidate": judged.comparison.candidate,
                "verdict": str(comparison_verdict(judged)),
                "means": verdict_words(judged),
                "seconds": rounded(judged.comparison.seconds),
                "probes": [probe_json(probe) for probe in judged.probes],
            }
            for judged in judgement.comparisons
        ],
        "not_run": [{"what": what, "why": why} for what, why in run.not_run],
        "accuracy": {name: encode(value) for name, value in run.accuracy.items()},
        "environment": dict(run.environment),
        "command": run.command,
    }


def golden_report(judgement: Judgement) -> dict[str, Any]:
    """One row for every array of the golden; what ``--json`` of ``--golden`` writes.

    A row holds the package against the golden array. Under int4 its verdict also counts the implementation (package
    against dequantised reference) of the same probe; those figures stand beside it.
    """
    rows = []
    for judged in judgement.comparisons:
        if judged.comparison.name == "golden":
            rows += [golden_row(probe, judgement) for probe in judged.probes]
    return {
        **_head(judgement),
        "probes": rows,
        "divergence": _divergence(judgement),
        "comparisons": {
            judged.comparison.title + (f" {judged.comparison.question}" if judged.comparison.question else ""): str(
                comparison_verdict(judged)
            )
            for judged in judgement.comparisons
        },
        "not_run": [{"what": what, "why": why} for what, why in judgement.run.not_run],
        "environment": dict(judgement.run.environment),
        "command": judgement.run.command,
    }


def _head(judgement: Judgement) -> dict[str, Any]:
    run = judgement.run
    return {
        "case": run.case,
        "family": run.family,
        "variant": run.variant,
        "target": run.target,
        "precision": run.precision,
        "backend": run.backend,
        "verdict": str(judgement.verdict),
        "first_failure": judgement.first_failure or None,
        "meaning": meaning(judgement).to_json(),
        "schema": SCHEMA,
    }


def details_json(run: Run) -> dict[str, Any]:
    """Answers without pictures, similarity, errors inside stages, costs of layers, waivers; figures rounded."""
    value = run_details.to_json(run.details)
    for answer in value["answers"]:
        answer.pop("picture")
    value["layers"] = run_details.to_json(replace(run.details, layers=run.details.costly()))["layers"]
    value["waivers"] = [{"name": name, "meaning": meaning} for name, meaning in run.details.waivers]
    value["stages"] = [
        {**stage, "blocks": [{"block": block, "error": error} for block, error in stage["blocks"]]}
        for stage in value["stages"]
    ]
    value["inside_not_measured"] = value.pop("unmeasured") or None
    return _rounded_all(value)


def _rounded_all(value: Any) -> Any:
    """The same with every figure rounded; cosines keep more digits, because they are read by their distance from 1."""
    if isinstance(value, dict):
        return {
            key: rounded(item, 9) if isinstance(item, float) and key.endswith("cosine") else _rounded_all(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_rounded_all(item) for item in value]
    return rounded(value) if isinstance(value, float) else value


def _divergence(judgement: Judgement) -> dict[str, Any] | None:
    divergence = judgement.run.divergence
    if divergence is None:
        return None
    return {"stage": divergence.stage, "block": divergence.block, "note": divergence.note, "step": divergence.step}


def probe_json(probe: JudgedProbe) -> dict[str, Any]:
    """One judged probe: all metrics, all limits, the verdict."""
    m = probe.measurement
    row: dict[str, Any] = {
        "name": m.probe,
        "stage": m.stage,
        "kind": str(m.kind),
        "shape": list(m.shape),
        "metrics": {name: encode(rounded(value)) for name, value in m.metrics.items()},
        "limits": {limit.metric: limit.bound for limit in probe.limits},
        "verdict": str(probe.verdict),
    }
    if probe.verdict is not Verdict.PASS and probe.describe():
        row["why"] = probe.describe()
    return row


def golden_row(probe: JudgedProbe, judgement: Judgement) -> dict[str, Any]:
    m = probe.measurement
    limit = probe.limits[0] if probe.limits else None
    row: dict[str, Any] = {
        "name": m.probe,
        "stage": m.stage,
        "shape": list(m.shape),
        "max_abs_error": _number(m.metrics.get("max_abs")),
        "cosine": _number(m.metrics.get("cosine"), digits=9),
        "tolerance": None if limit is None else limit.bound,
        "tolerance_metric": None if limit is None else limit.metric,
    }
    inside = [
        (judged, other)
        for judged in judgement.comparisons
        if judged.comparison.title in ("implementation", "kernels")
        for other in judged.probes
        if judged.comparison.question + (base_name(other.measurement.probe) or "") == _bare(m.probe)
    ]
    verdict = probe.verdict
    if inside:
        worst = min(inside, key=lambda pair: _badness(pair[1]))[1]
        row["implementation"] = probe_json(worst)
        if verdict is not Verdict.NOT_PROBED:
            verdict = Verdict.FAIL if Verdict.FAIL in (verdict, worst.verdict) else Verdict.PASS
    verdict = Verdict.PASS if verdict is Verdict.REPORTED else verdict
    row["verdict"] = str(verdict)
    if verdict is not Verdict.PASS and probe.describe():
        row["why"] = probe.describe()
    return row


def _badness(probe: JudgedProbe) -> float:
    """Failures first."""
    return 0.0 if probe.verdict is Verdict.FAIL else 1.0


def _bare(name: str) -> str:
    """A golden array's name without the number of its piece (``vision_2`` -> ``vision``, ``p0_vision`` stays)."""
    stem, _, number = name.rpartition("_")
    return stem if stem and number.isdecimal() else name


def rounded(value: float, digits: int = METRIC_DIGITS) -> float:
    """``value`` to some significant digits."""
    return float(f"{value:.{digits}g}")


def _number(value: float | None, digits: int = METRIC_DIGITS) -> float | str | None:
    return None if value is None else encode(rounded(value, digits))


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file through a temporary name."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_run(path: Path, judgement: Judgement) -> None:
    """Store the run itself, unjudged and unrounded, for ``python -m parity_tests judge``."""
    write(path, to_json(judgement.run))
