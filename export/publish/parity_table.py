"""What the check at the end of an export found, as a table of a model card: each comparison and stage at its worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEANING = {
    "package": "the package against the full-precision reference; it stores what the checkpoint stores",
    "implementation": "the package's arithmetic against a PyTorch reference that holds the same stored numbers",
    "kernels": "the package as delivered against that reference: what 8-bit inputs and a float16 cache cost",
    "rounded inputs": "that reference with inputs rounded to 8 bits against itself: what rounding alone does to a question",
    "loss": "the stored numbers against full precision: what the precision itself costs",
}
"""Comparisons by the name that a manifest gives them (docs/parity_reports.md)."""

COLUMNS = ("comparison", "probe", "verdict", "worst relative error", "lowest cosine", "equal")
_WORST = (
    ("relative_max", max, "{:.2g}"),
    ("worst_row_cosine", min, "{:.6f}"),
)
_EQUAL = ("agreement", "top1_agreement")
"""Shares of 1: equal tokens of a greedy answer, and positions at which the likeliest token is the same."""


def table(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of a Markdown table: a row for each comparison and probe, the worst of all questions.

    Args:
        probes: ``verification.probes`` of a manifest.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for probe in probes:
        groups.setdefault((str(probe.get("comparison", "")), str(probe.get("name", ""))), []).append(probe)
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    for (comparison, name), rows in groups.items():
        yield _row([comparison, f"`{name}`", _verdict(rows), *_figures(rows)])


def meanings(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each comparison that the table holds."""
    for name in dict.fromkeys(str(probe.get("comparison", "")) for probe in probes):
        if name in MEANING:
            yield f"- `{name}`: {MEANING[name]}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({str(row.get("verdict", "")) for row in rows}))


def _figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    measured = [row.get("metrics", {}) for row in rows]
    for metric, worst, form in _WORST:
        values = [float(one[metric]) for one in measured if one.get(metric) is not None]
        yield form.format(worst(values)) if values else ""
    shares = [float(one[name]) for one in measured for name in _EQUAL if one.get(name) is not None]
    yield f"{100 * min(shares):.1f} %" if shares else ""
