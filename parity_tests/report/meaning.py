"""What a verdict means, in words and numbers: whether the implementation is exact, and what the stored precision costs.

Two questions that one "pass" would mix up. The first is judged: whoever fails it has a bug. The second is measured, and
judged only by a floor against nonsense, or by a preset (`parity_tests.judging.presets`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parity_tests.judging.cost import Cost, cost_of, how_to_measure
from parity_tests.judging.judge import JudgedComparison, Judgement, Verdict
from parity_tests.judging.presets import PRESETS
from parity_tests.judging.results import ROUNDED_INPUTS
from parity_tests.judging.standards import Standard

LOSS = "loss"
FLOORED = (LOSS, ROUNDED_INPUTS)
"""Comparisons that are held to a floor alone."""

ABOVE_THE_FLOOR = "above the sanity floor; no verdict on quality"

NEARNESS = {
    Standard.GOLDEN: "but for float32 rounding",
    Standard.FP32: "but for float32 rounding",
    Standard.STORED_FLOAT32: "but for float32 rounding",
    Standard.GOLDEN_FLIPPED: "but for a rounding that goes the other way",
    Standard.FLIPPED: "but for a rounding that goes the other way",
    Standard.FP16: "but for float16 rounding",
    Standard.STORED_FLOAT16: "but for float16 rounding",
    Standard.STORED_INT8: "but for 8-bit rounding of inputs",
    Standard.CACHE_INT8: "but for a key or value that rounds to the next byte",
    Standard.KERNELS_INT8: "but for 8-bit rounding of inputs",
    Standard.MOVED: "but for 8-bit rounding of inputs",
    Standard.SECOND_OPINION: "but for float32 rounding",
}


@dataclass(frozen=True)
class Meaning:
    """The verdict in two sentences.

    Attributes:
        exact: None where no implementation was compared.
        cost: None where the package's answers were not held against full precision's.
        precision: of the package.
        how_to_measure: what to do for a cost, where there is none.
    """

    exact: bool | None
    implementation: str
    cost: Cost | None
    precision: str
    how_to_measure: str

    @property
    def cost_words(self) -> str:
        """E.g. ``1 of 3 answers differs; 11 of 24 greedy tokens equal; mean KL 0.12 nats``."""
        cost = self.cost
        if cost is None:
            return f"not measured: answers were not compared with full precision's; {self.how_to_measure}"
        verb = "differs" if 1 in (cost.different, cost.answers) else "differ"
        told = [
            f"{cost.different} of {_counted(cost.answers, 'answer')} {verb}",
            f"{cost.equal} of {cost.tokens} greedy tokens equal",
        ]
        told += [] if cost.kl is None else [f"mean KL {cost.kl:.2g} nats"]
        if cost.right is not None and cost.right_in_full is not None:
            whole = "" if cost.ended == cost.known else f"of {_counted(cost.ended, 'answer')} that ended within --steps "
            told.append(f"{whole}{100 * cost.right:.0f} % right, full precision {100 * cost.right_in_full:.0f} %")
        return "; ".join(told)

    @property
    def lines(self) -> tuple[str, str]:
        """Both sentences with their headings."""
        return f"implementation: {self.implementation}", f"what {self.precision} costs: {self.cost_words}"

    def to_json(self) -> dict[str, Any]:
        """What report.json holds under ``meaning``."""
        cost = self.cost
        return {
            "exact": self.exact,
            "implementation": self.implementation,
            "cost": self.cost_words,
            "answers": None if cost is None else cost.answers,
            "answers_different": None if cost is None else cost.different,
            "tokens": None if cost is None else cost.tokens,
            "tokens_equal": None if cost is None else cost.equal,
            "kl_mean": None if cost is None or cost.kl is None else float(f"{cost.kl:.3g}"),
        }


def meaning(judgement: Judgement) -> Meaning:
    """The verdict of a run in words."""
    exact, words = _implementation(judgement)
    run = judgement.run
    cost = cost_of(run.details)
    return Meaning(exact, words, cost if cost.answers else None, run.precision, how_to_measure(run))


def comparison_verdict(judged: JudgedComparison) -> Verdict:
    """Fail when any probe fails; reported when nothing in it is judged."""
    verdicts = {probe.verdict for probe in judged.probes}
    for verdict in (Verdict.FAIL, Verdict.PASS, Verdict.REPORTED):
        if verdict in verdicts:
            return verdict
    return Verdict.NOT_PROBED


def verdict_words(judged: JudgedComparison) -> str:
    """A comparison's verdict; the loss that stays above its floor is never called a pass."""
    verdict = comparison_verdict(judged)
    passed = judged.comparison.name in FLOORED and verdict is Verdict.PASS
    return ABOVE_THE_FLOOR if passed else str(verdict)


def _implementation(judgement: Judgement) -> tuple[bool | None, str]:
    rows = [judged for judged in judgement.comparisons if judged.comparison.name not in (*FLOORED, *PRESETS)]
    judged = [row for row in rows if comparison_verdict(row) in (Verdict.PASS, Verdict.FAIL)]
    if not judged:
        return None, "not compared"
    failed = [row for row in judged if row.first_failure is not None]
    questions = _counted(len({row.comparison.question for row in judged}), "question")
    if failed:
        broken = len({row.comparison.question for row in failed})
        divergence = judgement.run.divergence
        first = (divergence and divergence.place) or judgement.first_failure
        return False, f"NOT exact on {broken} of {questions}; first at {first}"
    if {row.comparison.standard for row in judged} == {Standard.INT4_LOSS}:
        return None, "not compared apart from what storing costs"
    standards = dict.fromkeys(row.comparison.standard for row in judged)
    nearness = list(dict.fromkeys(NEARNESS[standard] for standard in standards if standard in NEARNESS))
    kernels = any(row.comparison.name == "kernels" for row in judged)
    words = f"exact {nearness[0]}, on {questions}"
    return True, words + (f"; its own kernels exact {nearness[-1]}" if kernels and len(nearness) > 1 else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
