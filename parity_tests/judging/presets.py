"""``--release`` and ``--strict``: limits on what the stored precision costs, for people who decide whether to ship.

Without a preset a run fails where the implementation is not exact, and what int4 costs is told and held to a floor against
nonsense alone. A preset adds a comparison of its own name, of the package as delivered against full precision, in every
report. What it judges must have been measured: a release that nobody held against full precision does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from parity_tests.judging.accuracy import ALL_FIVE, EXACT, in_full
from parity_tests.judging.cost import cost_of, how_to_measure
from parity_tests.judging.judge import JudgedComparison, JudgedProbe, Judgement, Verdict
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Measurement, Run
from parity_tests.judging.standards import Limit, Standard
from parity_tests.thresholds import DEFAULT

STAGE = "answers"

_NATS = (
    "a tenth of a nat a position, chosen: int4 rounded to nearest costs the demos 0.06 to 1.7 and SmolLM2-135M 1.0 "
    "(docs/results/rounding.md); calibrate, or keep costly layers in more bits, where it is exceeded"
)
_FIRST = "chosen: one position in ten may put another token first, where full precision was unsure"
_POINTS = "points of right answers that may be lost against full precision on the same questions"
_SAME = "the same words as full precision"
_FLOAT16 = next(limit.bound for limit in DEFAULT[Standard.FP16][Kind.LOGITS] if limit.metric == "kl_mean")

PRESETS: Mapping[str, tuple[Limit, ...]] = {
    "release": (
        Limit("kl_mean", 0.1, _NATS),
        Limit("top1_agreement", 0.9, _FIRST),
        Limit("points_lost", 1.0, _POINTS),
        Limit("parts_not_run", 0, "what was not run was not checked: run the rest where its device is"),
    ),
    "strict": (
        Limit("answers_different", 0, _SAME),
        Limit("tokens_different", 0, _SAME),
        Limit("kl_mean", _FLOAT16, "what float16 may cost (standard fp16); no int4 holds it"),
        Limit("points_lost", 0.0, _POINTS),
        Limit("parts_not_run", 0, "what was not run was not checked: run the rest where its device is"),
    ),
}
"""Limits by preset, each with its reason."""

BESIDE = ("own samples", "task accuracy")
"""What may be left out: lines `not run` that end so are no part of the package."""

MEASURED = {"kl_mean", "top1_agreement", "answers_different", "tokens_different"}
"""Figures that must be there; points are lost only where somebody knows what is right."""


def with_preset(judgement: Judgement, name: str) -> Judgement:
    """The judgement with the preset's comparison, and the verdict that comes of it."""
    figures = costs(judgement.run)
    limits = tuple(limit for limit in PRESETS[name] if limit.metric in figures or limit.metric in MEASURED)
    missing = sorted({limit.metric for limit in limits} - set(figures))
    problem = f"not measured: full precision was not asked; {how_to_measure(judgement.run)}" if missing else ""
    m = Measurement("package as delivered", STAGE, Kind.EXACT, (), {} if missing else figures, problem, required=True)
    broken = () if missing else tuple(limit for limit in limits if not limit.holds(figures))
    probe = JudgedProbe(m, limits, broken, Verdict.FAIL if missing or broken else Verdict.PASS)
    compared = Comparison(name, Standard.INT4_LOSS, "full precision", judgement.run.backend, (m,))
    judged = replace(judgement, comparisons=(*judgement.comparisons, JudgedComparison(compared, (probe,))))
    if probe.verdict is Verdict.PASS or judgement.verdict is Verdict.FAIL:
        return judged
    return replace(judged, verdict=Verdict.FAIL, first_failure=f"{name}: package as delivered: {probe.describe()}")


def costs(run: Run) -> dict[str, float]:
    """The figures that presets judge, as far as the run has them."""
    cost = cost_of(run.details)
    figures: dict[str, float] = {"parts_not_run": float(sum(not what.endswith(BESIDE) for what, _ in run.not_run))}
    if cost.kl is not None and cost.agreement is not None:
        figures |= {"kl_mean": cost.kl, "top1_agreement": cost.agreement}
    if cost.answers:
        figures |= {"answers_different": float(cost.different), "tokens_different": float(cost.tokens - cost.equal)}
    lost = [
        100 * (run.accuracy[in_full(name)] - run.accuracy[name])
        for name in (ALL_FIVE, EXACT)
        if name in run.accuracy and in_full(name) in run.accuracy
    ]
    return {**figures, "points_lost": max(lost)} if lost else figures
