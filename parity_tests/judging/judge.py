"""From measurements and thresholds to verdicts: pass, fail, not-probed, and the first thing that failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from parity_tests import thresholds
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Divergence, Measurement, Run
from parity_tests.judging.standards import Limit, Table


class Verdict(StrEnum):
    """What is said of a probe, a comparison or a run."""

    PASS = "pass"
    FAIL = "fail"
    NOT_PROBED = "not-probed"
    REPORTED = "reported"  # measured, and no limit applies
    NOT_RUN = "not run"


@dataclass(frozen=True)
class JudgedProbe:
    """A measurement with its limits and what came of it; ``broken`` are the limits that do not hold."""

    measurement: Measurement
    limits: tuple[Limit, ...]
    broken: tuple[Limit, ...]
    verdict: Verdict

    def describe(self) -> str:
        """Why it failed, in one clause."""
        m = self.measurement
        if m.problem or m.not_probed:
            return m.problem or m.not_probed
        return ", ".join(f"{b.metric} {m.metrics.get(b.metric, float('nan')):.3g} (limit {b.bound:g})" for b in self.broken)


@dataclass(frozen=True)
class JudgedComparison:
    """One comparison with a verdict on each probe."""

    comparison: Comparison
    probes: tuple[JudgedProbe, ...]

    @property
    def first_failure(self) -> JudgedProbe | None:
        return next((probe for probe in self.probes if probe.verdict is Verdict.FAIL), None)


@dataclass(frozen=True)
class Judgement:
    """A whole run, judged."""

    run: Run
    comparisons: tuple[JudgedComparison, ...]
    verdict: Verdict
    first_failure: str


def judge(run: Run, table: Table | None = None) -> Judgement:
    """Judge every measurement; a run with nothing that could be compared is "not run", never a pass."""
    judged = tuple(judge_comparison(comparison, run.family, table) for comparison in run.comparisons)
    broken = [(c, c.first_failure) for c in judged if c.first_failure is not None]
    if broken and run.divergence is None:
        run = run.with_divergence(_from_profile(run, table))
    compared = any(p.verdict in (Verdict.PASS, Verdict.FAIL) for c in judged for p in c.probes)
    verdict = Verdict.FAIL if broken else Verdict.PASS if compared else Verdict.NOT_RUN
    return Judgement(run, judged, verdict, _first_failure(run, broken))


def _from_profile(run: Run, table: Table | None) -> Divergence | None:
    """Where a run that passed when it was made parts under these limits: the first stored stage and block beyond them."""
    standards = {comparison.title: comparison.standard for comparison in run.comparisons}
    for stage in run.details.stages:
        kind = {"decoder": Kind.LOGITS, "embed_tokens": Kind.EMBEDS}.get(stage.stage, Kind.FEATURES)
        if stage.comparison == "loss" or stage.comparison not in standards:
            continue
        limits = thresholds.limits(standards[stage.comparison], kind, run.family, table)
        bounds = [limit.bound for limit in limits if limit.metric == "relative_max"]
        # not ``>``: a NaN is beyond every bound
        if bounds and not stage.error <= bounds[0]:
            block = next((name for name, error in stage.blocks if not error <= bounds[0]), "")
            return Divergence(stage.stage, block, stage.blocks, "from the stored errors of blocks")
    return None


def _first_failure(run: Run, broken: list) -> str:
    """The earliest failing probe in words; the block inside it when it was found."""
    if not broken:
        return ""
    comparison, probe = broken[0]
    question = comparison.comparison.question
    name = question + ("" if question.endswith("_") or not question else " ") + probe.measurement.probe
    place = f"stage {probe.measurement.stage}"
    if run.divergence is not None and run.divergence.stage == probe.measurement.stage:
        place = run.divergence.place
    return f"{comparison.comparison.title}: {name} ({place}): {probe.describe()}"


def judge_comparison(comparison: Comparison, family: str, table: Table | None = None) -> JudgedComparison:
    """A verdict on each measurement."""
    probes = (judge_measurement(m, comparison, family, table) for m in comparison.measurements)
    return JudgedComparison(comparison, tuple(probes))


def all_hold(comparison: Comparison, family: str) -> bool:
    """Whether nothing in a comparison breaks a built-in limit."""
    return judge_comparison(comparison, family).first_failure is None


def judge_measurement(m: Measurement, comparison: Comparison, family: str, table: Table | None) -> JudgedProbe:
    """One verdict; a required probe that nobody looked at fails."""
    limits = thresholds.limits(comparison.standard, m.kind, family, table)
    if m.not_probed:
        return JudgedProbe(m, limits, (), Verdict.FAIL if m.required else Verdict.NOT_PROBED)
    if m.problem:
        return JudgedProbe(m, limits, (), Verdict.FAIL)
    broken = tuple(limit for limit in limits if not limit.holds(m.metrics))
    verdict = Verdict.FAIL if broken else Verdict.PASS if limits else Verdict.REPORTED
    return JudgedProbe(m, limits, broken, verdict)
