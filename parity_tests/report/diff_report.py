"""Two runs side by side in Markdown: the answer first, what counts next, then every figure that changed."""

from __future__ import annotations

from collections import Counter

from parity_tests.judging.diff import Change, Difference, Row
from parity_tests.judging.judge import Judgement
from parity_tests.report.headline import accuracy_lines, similarity_lines
from parity_tests.report.markdown_report import cell, number
from parity_tests.report.meaning import meaning


def markdown(difference: Difference) -> str:
    """The whole text."""
    said = "WORSE" if difference.worse else "not worse"
    counts = Counter(row.change for row in difference.rows)
    summary = ", ".join(f"{counts[change]} {change}" for change in Change if counts[change])
    lines = [
        f"# {said}: {_name(difference.before)} to {_name(difference.after)}",
        "",
        f"{summary} of {len(difference.rows)} figures.",
        "",
    ]
    if difference.reasons:
        lines += ["## What counts", "", *(f"- {reason}" for reason in difference.reasons), ""]
    lines += ["## Verdicts", "", "| | before | after |", "|---|---|---|"]
    lines.append(f"| verdict | {difference.before.verdict} | {difference.after.verdict} |")
    lines.append(
        f"| first failure | {difference.before.first_failure or 'none'} | {difference.after.first_failure or 'none'} |"
    )
    before, after = meaning(difference.before), meaning(difference.after)
    lines.append(f"| implementation | {cell(before.implementation)} | {cell(after.implementation)} |")
    lines.append(f"| what {after.precision} costs | {before.cost_words} | {after.cost_words} |")
    for name, read in (("similarity", similarity_lines), ("task accuracy", accuracy_lines)):
        lines.append(f"| {name} | {read(difference.before.run)[0]} | {read(difference.after.run)[0]} |")
    lines.append("")
    for change in (Change.WORSE, Change.BETTER, Change.NEW, Change.GONE):
        rows = [row for row in (*difference.rows, *difference.accuracy) if row.change is change]
        if rows:
            lines += [f"## {str(change).capitalize()}", "", *_table(rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _name(judgement: Judgement) -> str:
    run = judgement.run
    return f"{run.case} ({run.target} {run.precision})"


def _table(rows: list[Row]) -> list[str]:
    lines = ["| comparison | question | probe | metric | before | after | limit | verdict |", "|" + "---|" * 8]
    for row in rows:
        values = [("" if value is None else number(value)) for value in (row.before, row.after)]
        limit = "" if row.limit is None else f"{row.limit:g}"
        verdict = row.verdicts[1] if row.verdicts[0] == row.verdicts[1] else f"{row.verdicts[0]} to {row.verdicts[1]}"
        verdict = f"**{verdict}**" if row.counts else verdict
        lines.append("| " + " | ".join([*row.place, *values, limit, verdict]) + " |")
    return lines
