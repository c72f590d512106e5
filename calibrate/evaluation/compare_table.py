"""The tables of ``python -m calibrate compare``: one line per measurement, or methods down and grids across."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibrate.evaluation.score import Score
from calibrate.methods import RENAMED

PLAIN = "plain rounding"
TEXT, GENERAL = "text", "general"
"""Samples without their pictures; the general set for a model that has samples of its own."""


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        seconds: the calibration's, by the clock; ``processor`` by the processors' time.
        bits: per weight over all matrices of the package; ``size`` bytes of all its files, both as the export plans them.
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
    processor: float = 0.0
    bits: float = 0.0
    size: int = 0

    @property
    def name(self) -> str:
        return self.method + {TEXT: ", text only", GENERAL: ", general samples"}.get(self.samples, "")


def as_json(model: str, pictures: int, rows: Sequence[Row], outliers: float = 0.0) -> dict[str, Any]:
    """One comparison as a file holds it; `from_json` is its inverse for the rows."""
    head = {"kind": "comparison", "model": model, "pictures": pictures, "outliers": outliers}
    return {**head, "rows": [asdict(row) for row in rows]}


def from_json(table: Mapping[str, Any]) -> list[Row]:
    """The rows of a comparison; files written before a method was renamed are read under its new name."""
    return [row_of(row) for row in table["rows"]]


def row_of(stored: Mapping[str, Any]) -> Row:
    """One row as `as_json` writes it."""
    # Tables never called plain rounding "rtn" (it is `PLAIN`), so the old name is the searched clip wherever it stands.
    method = re.sub(r"^rtn\b", RENAMED["rtn"], stored["method"])
    score, blocks = Score(**stored["score"]), tuple(stored["rounded_blocks"])
    return Row(**{**stored, "method": method, "score": score, "rounded_blocks": blocks})


def long_table(rows: Sequence[Row]) -> str:
    """Markdown with a line per row and every figure."""
    measured = "task", "changed", "perplexity", "logits cosine", "worst", "KL (nats)", "median KL", "99 % KL", "same token"
    titles = "grid", "method", "samples", *measured, "s", "processor s", "int4 KB", "bits/weight", "package MB"
    lines = ["| " + " | ".join(titles) + " |"]
    lines.append("|" + "---|" * len(titles))
    for row in rows:
        score = row.score
        task = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} %"
        changed = "" if score.changed is None else score.changed
        lines.append(
            f"| {row.setting} | {row.method} | {row.samples} | {task} | {changed} | {_or_none(score.perplexity)} "
            f"| {score.cosine:.5f} | {score.worst_cosine:.4f} | {score.kl:.5f} | {score.median_kl:.1e} "
            f"| {score.p99_kl:.3f} | {100 * score.agreement:.2f} % "
            f"| {row.seconds:.1f} | {row.processor:.1f} | {row.bytes / 1e3:.0f} | {row.bits:.2f} | {row.size / 1e6:.1f} |"
        )
    return "\n".join(lines)


def _or_none(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def wide_table(rows: Sequence[Row]) -> str:
    """Markdown with a line per method and a column per grid: task (percent), answers changed, mean cosine, and mean and
    median KL (thousandths of a nat).
    """
    settings = list(dict.fromkeys(row.setting for row in rows if row.setting))
    cells = {(row.name, row.setting): row for row in rows}
    title = "task % / changed / cosine / KL, median KL (mnat)"
    lines = [f"| {title} | " + " | ".join(settings) + " |", "|---|" + "---|" * len(settings)]
    for name in dict.fromkeys(row.name for row in rows):
        whole = cells.get((name, ""))
        scores = [whole or cells.get((name, setting)) for setting in settings]
        lines.append(f"| {name} | " + " | ".join("" if row is None else _cell(row.score) for row in scores) + " |")
    return "\n".join(lines)


def _cell(score: Score) -> str:
    task = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} / {score.changed} / "
    return f"{task}{score.cosine:.5f} / {1000 * score.kl:.2f}, {1000 * score.median_kl:.3g}"
