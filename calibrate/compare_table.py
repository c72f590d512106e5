"""The tables of ``python -m calibrate compare``: one line per measurement, or methods down and grids across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.score import Score


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        seconds: the calibration's, by the clock.
        bytes: of the layers that the plan stores in four bits, as this row stores them.
        rounded_blocks: blocks that went back to plain rounding after the check on held-out samples.
    """

    setting: str
    method: str
    samples: str
    score: Score
    seconds: float
    bytes: int = 0
    rounded_blocks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method}, text only" if self.samples == "text" else self.method


def long_table(rows: Sequence[Row]) -> str:
    """Markdown with a line per row and every figure."""
    lines = ["| grid | method | samples | task | logits cosine | worst | KL (nats) | median KL | same token | s | KB |"]
    lines.append("|" + "---|" * 11)
    for row in rows:
        score = row.score
        task = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} %"
        lines.append(
            f"| {row.setting} | {row.method} | {row.samples} | {task} | {score.cosine:.5f} | {score.worst_cosine:.4f} "
            f"| {score.kl:.5f} | {score.median_kl:.1e} | {100 * score.agreement:.2f} % | {row.seconds:.1f} "
            f"| {row.bytes / 1e3:.0f} |"
        )
    return "\n".join(lines)


def wide_table(rows: Sequence[Row]) -> str:
    """Markdown with a line per method and a column per grid: task (percent), mean cosine, mean KL (thousandths of a nat)."""
    settings = list(dict.fromkeys(row.setting for row in rows if row.setting))
    cells = {(row.name, row.setting): row for row in rows}
    lines = ["| task % / cosine / KL (mnat) | " + " | ".join(settings) + " |", "|---|" + "---|" * len(settings)]
    for name in dict.fromkeys(row.name for row in rows):
        whole = cells.get((name, ""))
        found = [whole or cells.get((name, setting)) for setting in settings]
        lines.append(f"| {name} | " + " | ".join("" if row is None else _cell(row.score) for row in found) + " |")
    return "\n".join(lines)


def _cell(score: Score) -> str:
    task = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} / "
    return f"{task}{score.cosine:.5f} / {1000 * score.kl:.2f}"
