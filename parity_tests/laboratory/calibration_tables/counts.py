"""Methods counted over pairs of model and grid: in how many each is no worse than rounding, figure by figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibrate.evaluation.compare_table import PLAIN, Row
from calibrate.evaluation.score import Score

BASELINES = (PLAIN, "mse-clip", "gptq, text only")
"""What methods are held against: nearest codes; nearest codes after a search for clips; samples without their pictures."""

BLOCKS = "cpu:32", "cpu:128"
"""Settings whose blocks differ in size and in nothing else."""

ENLARGED = "gptq", "gptq, scales tuned"
"""Methods whose larger blocks stand beside plain rounding's smaller ones."""

CHANCE = 0.05
"""A difference between answers counts where chance alone would make it more seldom than this."""


@dataclass(frozen=True)
class Comparison:
    """One model's rows.

    Attributes:
        outliers: how many times larger its outlier channels are (calibrate.evaluation.outliers); 0 for the model as it is.
    """

    model: str
    pictures: int
    rows: Sequence[Row]
    outliers: float = 0.0

    @property
    def full(self) -> Score:
        """Full precision's."""
        return next(row.score for row in self.rows if row.name == "fp32")

    def cells(self, name: str) -> dict[str, Score]:
        """A method's scores by grid."""
        return {row.setting: row.score for row in self.rows if row.name == name and row.setting}


def won_and_lost(score: Score, other: Score) -> tuple[int, int]:
    """Questions that only the first answers right, and that only the second does."""
    pairs = list(zip(score.answers, other.answers, strict=True))
    return pairs.count(("1", "0")), pairs.count(("0", "1"))


def chance_of(won: int, lost: int) -> float:
    """How often as many or more of these questions would be lost if either answer were as likely to be the right one.

    The exact one-sided sign test (McNemar's) on the questions where two sets of weights differ.
    """
    differing = won + lost
    return sum(math.comb(differing, count) for count in range(lost, differing + 1)) / 2**differing


FIGURES: dict[str, Callable[[Score, Score], bool]] = {
    "task as it stands": lambda score, other: (score.accuracy or 0) >= (other.accuracy or 0),
    "task but for chance": lambda score, other: chance_of(*won_and_lost(score, other)) >= CHANCE,
    "changed": lambda score, other: (score.changed or 0) <= (other.changed or 0),
    "cosine": lambda score, other: score.cosine >= other.cosine,
    "KL": lambda score, other: score.kl <= other.kl,
    "median KL": lambda score, other: score.median_kl <= other.median_kl,
}
"""Whether a score is no worse than another. Accuracy as it stands counts luck too: weights that differ from full precision
answer some questions right that full precision does not."""


LOSSES: dict[str, Callable[[Score], float]] = {
    "cosine": lambda score: 1 - score.cosine,
    "KL": lambda score: score.kl,
    "median KL": lambda score: score.median_kl,
}
"""What is lost of similarity, to be divided by what another loses."""


def counts_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: the worst of each method over all pairs, then one table for each of `BASELINES` that was measured."""
    names = list(dict.fromkeys(row.name for one in comparisons for row in one.rows if row.setting))
    tables = [_worst(comparisons, names)]
    tables += [_against(comparisons, names, than) for than in BASELINES if than in names]
    tables += [_blocks(comparisons, name) for name in names if name in ENLARGED]
    return "\n\n".join(table for table in tables if table)


def _worst(comparisons: Sequence[Comparison], names: Sequence[str]) -> str:
    rows = []
    for name in names:
        pairs = [(score, one.full) for one in comparisons for score in one.cells(name).values()]
        lost = [100 * ((full.accuracy or 0) - (score.accuracy or 0)) for score, full in pairs]
        close = f"{sum(points <= 1 for points in lost)} of {len(pairs)}"
        changed = sum(score.changed or 0 for score, _ in pairs)
        rows.append([name, close, f"{max(0.0, *lost):.1f}", str(changed), f"{min(s.cosine for s, _ in pairs):.5f}"])
    return _table(["method", "within 1 point", "most points lost", "answers changed", "least mean cosine"], rows)


def _against(comparisons: Sequence[Comparison], names: Sequence[str], than: str) -> str:
    """In how many pairs each method is no worse; the geometric mean of how many times less it loses; answers that differ."""
    titles = [f"no worse than {than}", *FIGURES, *(f"{loss}, times less" for loss in LOSSES), f"only it right : only {than}"]
    rows = []
    for name in names:
        if name != than:
            counts = [no_worse(comparisons, name, than, figure) for figure in FIGURES]
            factors = [times_less(comparisons, name, than, loss) for loss in LOSSES]
            rows.append([name, *counts, *factors, differing(comparisons, name, than)])
    return _table(titles, rows)


def _blocks(comparisons: Sequence[Comparison], name: str) -> str:
    """Calibrated in the larger blocks of `BLOCKS` beside rounded in the smaller ones; nothing without both."""
    small, large = BLOCKS
    rows = []
    for one in comparisons:
        rounded = [score for setting, score in one.cells(PLAIN).items() if setting.startswith(f"{small} ")]
        scores = [score for setting, score in one.cells(name).items() if setting.startswith(f"{large} ")]
        if rounded and scores:
            pair = scores[0], rounded[0]
            tasks = [f"{100 * (score.accuracy or 0):.1f}" for score in pair]
            cosines = [f"{score.cosine:.5f}" for score in pair]
            losses = [f"{1000 * score.kl:.2f}, {1000 * score.median_kl:.3g}" for score in pair]
            rows.append([one.model, *(" / ".join(cells) for cells in (tasks, cosines, losses))])
    title = f"{name} on {large} / plain rounding on {small}"
    return _table([title, "task %", "cosine", "KL, median KL (mnat)"], rows) if rows else ""


def no_worse(comparisons: Sequence[Comparison], name: str, than: str, figure: str) -> str:
    """``"23 of 24"`` pairs in which one method is no worse than another; empty where nothing can be compared."""
    held = [FIGURES[figure](score, other) for score, other in _pairs(comparisons, name, than)]
    return f"{sum(held)} of {len(held)}" if held else ""


def times_less(comparisons: Sequence[Comparison], name: str, than: str, loss: str) -> str:
    """``"1.73"``: geometric mean of another method's loss over this one's; empty where there is nothing to divide."""
    ratios = [(LOSSES[loss](other), LOSSES[loss](score)) for score, other in _pairs(comparisons, name, than)]
    logarithms = [math.log(theirs / ours) for theirs, ours in ratios if theirs > 0 and ours > 0]
    return f"{math.exp(sum(logarithms) / len(logarithms)):.2f}" if logarithms else ""


def differing(comparisons: Sequence[Comparison], name: str, than: str) -> str:
    """``"31 : 12"`` questions of all pairs together that only one of two methods answers right."""
    counts = [won_and_lost(score, other) for score, other in _pairs(comparisons, name, than)]
    return f"{sum(won for won, _ in counts)} : {sum(lost for _, lost in counts)}" if counts else ""


def _pairs(comparisons: Sequence[Comparison], name: str, than: str) -> list[tuple[Score, Score]]:
    """Scores of two methods on the same models and grids."""
    return [
        (score, others[setting])
        for one in comparisons
        for others in [one.cells(than)]
        for setting, score in one.cells(name).items()
        if setting in others
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (titles, ["---"] * len(titles), *rows))
