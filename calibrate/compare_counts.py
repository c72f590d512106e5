"""Methods counted over pairs of model and grid: in how many each is no worse than rounding, figure by figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibrate.compare_table import PLAIN, Row
from calibrate.score import Score

ROUNDINGS = (PLAIN, "rtn")
"""What a calibrated method is held against: nearest codes, and nearest codes after a search for clips."""

CHANCE = 0.05
"""A difference between answers counts where chance alone would make it more seldom than this."""


@dataclass(frozen=True)
class Comparison:
    """One model's rows.

    Attributes:
        outliers: how many times larger its outlier channels are (calibrate.outliers); 0 for the model as it is.
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


def counts_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: the worst of each method, then how it stands against each kind of rounding."""
    names = list(dict.fromkeys(row.name for one in comparisons for row in one.rows if row.setting))
    titles = ["method", "within 1 point", "most points lost", "answers changed", "least mean cosine"]
    for rounding in ROUNDINGS:
        titles += [f"{figure} vs {rounding}" for figure in FIGURES] + [f"only it right : only {rounding}"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name in names:
        pairs = [(score, one.full) for one in comparisons for score in one.cells(name).values()]
        lost = [100 * ((full.accuracy or 0) - (score.accuracy or 0)) for score, full in pairs]
        cells = [name, f"{sum(points <= 1 for points in lost)} of {len(pairs)}", f"{max(*lost, 0.0):.1f}"]
        cells += [str(sum(score.changed or 0 for score, _ in pairs)), f"{min(score.cosine for score, _ in pairs):.5f}"]
        for rounding in ROUNDINGS:
            cells += [no_worse(comparisons, name, rounding, figure) for figure in FIGURES]
            cells.append(differing(comparisons, name, rounding))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def no_worse(comparisons: Sequence[Comparison], name: str, than: str, figure: str) -> str:
    """``"23 of 24"`` pairs in which one method is no worse than another; empty where nothing can be compared."""
    held = [FIGURES[figure](score, other) for score, other in _pairs(comparisons, name, than)]
    return f"{sum(held)} of {len(held)}" if held else ""


def differing(comparisons: Sequence[Comparison], name: str, than: str) -> str:
    """``"31 : 12"`` questions of all pairs together that only one of two methods answers right."""
    counts = [won_and_lost(score, other) for score, other in _pairs(comparisons, name, than)]
    return f"{sum(won for won, _ in counts)} : {sum(lost for _, lost in counts)}" if counts else ""


def _pairs(comparisons: Sequence[Comparison], name: str, than: str) -> list[tuple[Score, Score]]:
    """Scores of two methods on the same models and grids."""
    if name == than:
        return []
    return [
        (score, others[setting])
        for one in comparisons
        for others in [one.cells(than)]
        for setting, score in one.cells(name).items()
        if setting in others
    ]
