"""The report for a terminal: one line a probe, the verdict last."""

from __future__ import annotations

from parity_tests.judging.judge import JudgedComparison, Judgement
from parity_tests.judging.metrics import HIGHER_IS_BETTER
from parity_tests.report.json_report import golden_row
from parity_tests.report.markdown_report import number
from parity_tests.report.meaning import meaning, verdict_words


def console(judgement: Judgement, only: str | None = None) -> str:
    """Aligned lines.

    Args:
        only: show the probes of the comparisons of this name and of failing ones; None shows all.
    """
    run = judgement.run
    lines = [f"{run.case}  {run.family} {run.variant}  {run.target} {run.precision}  ({run.backend})"]
    for judged in judgement.comparisons:
        comparison = judged.comparison
        name = comparison.title + (f" {comparison.question}" if comparison.question else "")
        verdict, nearest = verdict_words(judged), nearest_limit(judged)
        lines.append(f"{name}: {comparison.candidate} against {comparison.baseline}: {verdict}{nearest}")
        if only is None or comparison.name == only or judged.first_failure is not None:
            lines += _rows(judged, judgement)
    lines += [f"not run: {what} ({why})" for what, why in run.not_run]
    lines += [f"{name}: {number(value)}" for name, value in run.accuracy.items()]
    if judgement.first_failure:
        lines.append(f"first failure: {judgement.first_failure}")
    if run.divergence is not None:
        lines.append(f"where it parts: {'; '.join(filter(None, (run.divergence.place, run.divergence.note)))}")
    lines += meaning(judgement).lines
    lines.append(f"verdict: {judgement.verdict}")
    return "\n".join(lines)


def nearest_limit(judged: JudgedComparison) -> str:
    """The measured figure that comes nearest to its limit, among those where lower is better."""
    shares = [
        (probe.measurement.metrics[limit.metric] / limit.bound, probe.measurement, limit)
        for probe in judged.probes
        for limit in probe.limits
        if limit.bound > 0 and not HIGHER_IS_BETTER[limit.metric] and limit.metric in probe.measurement.metrics
    ]
    if not shares:
        return ""
    _, m, limit = max(shares, key=lambda entry: entry[0])
    return f"; nearest its limit: {m.probe} {limit.metric} {number(m.metrics[limit.metric])} of {limit.bound:g}"


def _rows(judged: JudgedComparison, judgement: Judgement) -> list[str]:
    """One line a probe; against a golden the verdict counts the implementation too, as in the JSON report."""
    width = max((len(probe.measurement.probe) for probe in judged.probes), default=0)
    lines = []
    for probe in judged.probes:
        m = probe.measurement
        shape = "x".join(map(str, m.shape))
        verdict = golden_row(probe, judgement)["verdict"] if judged.comparison.name == "golden" else str(probe.verdict)
        if "max_abs" in m.metrics:
            limit = f"{probe.limits[0].metric} {probe.limits[0].bound:g}" if probe.limits else "no limit"
            figures = f"max abs {m.metrics['max_abs']:9.3g}  cosine {number(m.metrics['cosine']):>12}  tolerance {limit}"
        else:
            figures = probe.describe() or ", ".join(f"{name} {number(value)}" for name, value in m.metrics.items())
        lines.append(f"  {m.probe:{width}}  {shape:14} {verdict:10}  {figures}")
    return lines
