"""Bars of a comparison as an SVG, written with no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

BAR, GAP, LEFT, WIDE, HEAD = 18, 6, 190, 420, 26
COLOURS = ("#0b6e4f", "#8a8d91")
"""Ours, and those of peers; both reach a contrast of 3 to 1 on white."""


def svg(told: Mapping[str, Any]) -> str:
    """A group of bars a figure, tokens a second, ours first."""
    ran = [engine for engine in told["engines"] if engine["status"] == "run"]
    machine = told["machine"]
    parts, y = [], HEAD
    for figure in ran[0]["figures"]:
        rates = [engine["figures"][figure]["tokens_per_second"] for engine in ran]
        most = max(rate["high"] for rate in rates)
        parts.append(f'<text x="8" y="{y + 14}" font-weight="bold">{escape(figure)}, tokens/s</text>')
        y += HEAD
        for place, (engine, rate) in enumerate(zip(ran, rates, strict=True)):
            width = WIDE * rate["median"] / most
            low, high = (LEFT + WIDE * rate[edge] / most for edge in ("low", "high"))
            middle = y + BAR / 2
            parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(engine["name"])}</text>')
            colour = COLOURS[min(place, 1)]
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#111" stroke-width="1.5"/>')
            parts.append(f'<text x="{LEFT + WIDE + 10}" y="{y + 13}">{rate["median"]:.1f}</text>')
            y += BAR + GAP
        y += GAP
    title = f"{machine['threads']} threads, {machine['processor']}"
    wide = LEFT + WIDE + 80
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{y}" viewBox="0 0 {wide} {y}" role="img"'
        f' font-family="sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="17">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )
