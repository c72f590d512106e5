"""Methods counted over pairs of model and grid: in how many each is no worse than rounding, figure by figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibrate.compare_table import PLAIN, Row
from calibrate.score import Score

ROUNDINGS = (PLAIN, "rtn")
"""What a calibrated method is held against: nearest codes, and nearest codes after a search for clips."""


@dataclass(frozen=True)
class Comparison:
    """One model's rows."""

    model: str
    pictures: int
    rows: Sequence[Row]

    @property
    def full(self) -> Score:
        """Full precision's."""
        return next(row.score for row in self.rows if row.name == "fp32")

    def cells(self, name: str) -> dict[tuple[str, str], Score]:
        """A method's scores by model and grid."""
        return {(self.model, row.setting): row.score for row in self.rows if row.name == name and row.setting}


Figure = Callable[[Score, Score], float]
"""How bad a score is, given full precision's; less is better."""

FIGURES: dict[str, Figure] = {
    "task": lambda score, full: max(0.0, (full.accuracy or 0.0) - (score.accuracy or 0.0)),
    "changed": lambda score, full: score.changed or 0,
    "cosine": lambda score, full: -score.cosine,
    "KL": lambda score, full: score.kl,
    "median KL": lambda score, full: score.median_kl,
}
"""``task`` is what is lost of full precision's accuracy: answers that are right by chance where full precision's are wrong
do not count for a method."""


def counts_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: the worst of each method, then in how many pairs it is no worse than each kind of rounding."""
    names = list(dict.fromkeys(row.name for one in comparisons for row in one.rows if row.setting))
    titles = ["method", "within 1 point", "most points lost", "answers changed", "least mean cosine"]
    titles += [f"{figure} vs {rounding}" for rounding in ROUNDINGS for figure in FIGURES]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name in names:
        pairs = [(score, one.full) for one in comparisons for score in one.cells(name).values()]
        lost = [100 * FIGURES["task"](score, full) for score, full in pairs]
        cells = [name, f"{sum(points <= 1 for points in lost)} of {len(pairs)}", f"{max(lost):.1f}"]
        cells += [str(sum(score.changed or 0 for score, _ in pairs)), f"{min(score.cosine for score, _ in pairs):.5f}"]
        for rounding in ROUNDINGS:
            cells += [no_worse(comparisons, name, rounding, figure) for figure in FIGURES.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def no_worse(comparisons: Sequence[Comparison], name: str, than: str, figure: Figure) -> str:
    """``"23 of 24"`` pairs in which one method's figure is no worse than another's; empty where nothing can be compared."""
    if name == than:
        return ""
    held = asked = 0
    for one in comparisons:
        others = one.cells(than)
        for cell, score in one.cells(name).items():
            if cell in others:
                asked += 1
                held += figure(score, one.full) <= figure(others[cell], one.full)
    return f"{held} of {asked}" if asked else ""
