"""Plots as inline SVG, drawn for about 400 pixels of width so that they stay readable on a phone; colours come from CSS.

Every plot has a title and a description for people who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 400
LABELS = 136
FIGURES = 52
ROW = 19
MOST_POINTS = 400
"""Points of one line; of longer series the largest of every bin is drawn."""


@dataclass(frozen=True)
class Bar:
    """One bar; ``style`` is a CSS class, ``limit`` a mark on the same scale."""

    label: str
    value: float
    style: str
    limit: float | None = None


@dataclass(frozen=True)
class Line:
    """Values over positions 0, 1, ...; ``marked`` are positions to put a ring around."""

    name: str
    values: Sequence[float]
    style: str
    marked: Sequence[int] = ()


def figure_text(value: float) -> str:
    """A figure of at most seven letters."""
    if value == 0:
        return "0"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+") if math.isfinite(value) else "∞" if value > 0 else "–"


def _open(width: int, height: int, title: str, description: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. {escape(description)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    )


def _decades(values: Sequence[float], floor: float) -> tuple[int, int]:
    """Powers of ten around all positive finite values."""
    real = [max(value, floor) for value in values if value > 0 and math.isfinite(value)] or [floor, 1.0]
    low, high = math.floor(math.log10(min(real)) - 0.05), math.ceil(math.log10(max(real)) + 0.05)
    return low, max(high, low + 1)


def bars(title: str, rows: Sequence[Bar], description: str, floor: float = 1e-9) -> str:
    """Horizontal bars on a log scale; 0 is written as such, infinity fills the width."""
    limits = [row.limit for row in rows if row.limit is not None]
    low, high = _decades([row.value for row in rows] + limits, floor)
    span = WIDTH - LABELS - FIGURES
    height = ROW * len(rows) + 22

    def place(value: float) -> float:
        if value <= 0 or math.isnan(value):
            return 0.0
        if not math.isfinite(value):
            return float(span)
        return span * min(max((math.log10(max(value, floor)) - low) / (high - low), 0.01), 1.0)

    parts = [_open(WIDTH, height, title, description)]
    step = max(1, (high - low) // 4)
    for power in range(low, high + 1, step):
        x = LABELS + span * (power - low) / (high - low)
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="middle">1e{power}</text>')
    for index, row in enumerate(rows):
        y = ROW * index
        length = place(row.value)
        parts.append(f'<text x="{LABELS - 6}" y="{y + 13}" text-anchor="end">{escape(_shortened(row.label))}</text>')
        parts.append(f'<rect class="{row.style}" x="{LABELS}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}" rx="2"/>')
        if row.limit is not None:
            x = LABELS + place(row.limit)
            parts.append(f'<line class="limit" x1="{x:.1f}" y1="{y + 1}" x2="{x:.1f}" y2="{y + ROW - 1}"/>')
        text = figure_text(row.value)
        parts.append(f'<text class="figure" x="{WIDTH - 2}" y="{y + 13}" text-anchor="end">{text}</text>')
    return "".join([*parts, "</svg>"])


def _shortened(label: str, most: int = 20) -> str:
    """The end of a long label says more than its beginning."""
    return label if len(label) <= most else "…" + label[-(most - 1) :]


def lines(title: str, series: Sequence[Line], description: str, split: int | None = None, floor: float = 1e-9) -> str:
    """Lines over positions on a log scale; values of 0 lie on the floor.

    Args:
        split: the position before which a rule is drawn (where the answer begins).
    """
    height, left, bottom = 170, 40, 24
    low, high = _decades([value for line in series for value in line.values], floor)
    count = max((len(line.values) for line in series), default=1)
    wide, tall = WIDTH - left - 8, height - bottom - 8

    def x(position: float) -> float:
        return left + wide * (position + 0.5) / max(count, 1)

    def y(value: float) -> float:
        share = 1.0 if math.isinf(value) else (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return 8 + tall * (1 - min(max(share, 0.0), 1.0))

    parts = [_open(WIDTH, height, title, description)]
    for power in range(low, high + 1, max(1, (high - low) // 4)):
        parts.append(
            f'<line class="rule" x1="{left}" y1="{y(10.0**power):.1f}" x2="{WIDTH - 8}" y2="{y(10.0**power):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{left - 5}" y="{y(10.0**power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    if split is not None and 0 < split < count:
        at = left + wide * split / count
        parts.append(f'<line class="split" x1="{at:.1f}" y1="8" x2="{at:.1f}" y2="{8 + tall}"/>')
        side, anchor = (at - 4, "end") if split > count / 2 else (at + 4, "start")
        parts.append(f'<text class="tick" x="{side:.1f}" y="17" text-anchor="{anchor}">answer begins</text>')
    for line in series:
        points = _thinned(line.values)
        path = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        for place in line.marked[:MOST_POINTS]:
            parts.append(f'<circle class="ring {line.style}" cx="{x(place):.1f}" cy="{y(line.values[place]):.1f}" r="3.5"/>')
    parts.append(f'<text class="tick" x="{left}" y="{height - 6}">position 0</text>')
    parts.append(f'<text class="tick" x="{WIDTH - 8}" y="{height - 6}" text-anchor="end">{count - 1}</text>')
    return "".join([*parts, "</svg>"])


def _thinned(values: Sequence[float]) -> list[tuple[int, float]]:
    step = -(-len(values) // MOST_POINTS) if values else 1
    starts = range(0, len(values), step)
    return [(start, max(values[start : start + step])) for start in starts]


def tokens(title: str, reference: Sequence[float], candidate: Sequence[float], end: int | None = None) -> str:
    """Two rows of cells, reference above candidate; a cell that differs is filled and crossed.

    Args:
        end: tokens of the reference's answer proper; a rule stands behind them.
    """
    count = max(len(reference), len(candidate), 1)
    cell = min(22.0, (WIDTH - 70) / count)
    same = [a == b for a, b in zip(reference, candidate, strict=False)]
    description = f"{sum(same)} of {count} answer tokens are equal place by place"
    parts = [_open(WIDTH, 52, title, description)]
    for row, name in enumerate(("reference", "package")):
        parts.append(f'<text x="62" y="{18 + row * 22}" text-anchor="end">{name}</text>')
        for index in range(count):
            equal = index < len(same) and same[index]
            x, y = 68 + index * cell, 4 + row * 22
            style = "same" if equal else "differs"
            parts.append(f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{cell - 1.5:.1f}" height="18" rx="2"/>')
            if not equal and row:
                ends = f'x1="{x + 2:.1f}" y1="{y + 3}" x2="{x + cell - 3.5:.1f}" y2="{y + 15}"'
                parts.append(f'<line class="cross" {ends}/>')
    if end is not None and end < count:
        x = 67 + end * cell
        parts.append(f'<line class="split" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="48"/>')
    return "".join([*parts, "</svg>"])
