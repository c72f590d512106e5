"""The report for people: verdict and first failure in the first lines, then one table per stage and comparison."""

from __future__ import annotations

import math
from pathlib import Path

from parity_tests.judging.judge import JudgedComparison, JudgedProbe, Judgement
from parity_tests.judging.run_details import Details
from parity_tests.report.headline import accuracy_lines, similarity_lines
from parity_tests.report.meaning import meaning, verdict_words
from parity_tests.report.text_file import write as write_text
from runtime_py.contracts import STAGES

SHOWN_LAYERS = 8
COLUMNS = (
    "max_abs", "relative_max", "cosine", "mean_row_cosine", "worst_row_cosine", "kl_mean", "kl_median", "kl_p99", "kl_max",
    "top1_agreement", "equal_prefix",
)  # fmt: skip


def markdown(judgement: Judgement) -> str:
    """The whole report."""
    run = judgement.run
    first = f"FAIL: {judgement.first_failure}" if judgement.first_failure else str(judgement.verdict).upper()
    lines = [
        f"# {first}",
        "",
        f"{run.case}: {run.family} {run.variant}, target {run.target}, {run.precision}, run by {run.backend}.",
        "",
        *(f"{line[0].upper()}{line[1:]}.  " for line in meaning(judgement).lines),
        "",
        f"Similarity: {'; '.join(similarity_lines(run))}.  ",
        f"Task accuracy: {'; '.join(accuracy_lines(run))}.",
        "",
    ]
    if run.divergence is not None:
        lines += [_divergence(judgement), ""]
    lines += _answers(run.details) + _layers(run.details)
    for judged in judgement.comparisons:
        lines += _comparison(judged)
    if run.accuracy:
        lines += ["## Task accuracy", "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {number(value)} |" for name, value in run.accuracy.items()] + [""]
    if run.details.waivers:
        lines += ["## Waivers", ""] + [f"- {name}: {meaning}" for name, meaning in run.details.waivers] + [""]
    if run.not_run:
        lines += ["## Not run", ""] + [f"- {what}: {why}" for what, why in run.not_run] + [""]
    lines += ["## Environment", "", "| what | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in run.environment.items()]
    if run.command:
        lines += ["", "## Command", "", f"    {run.command}"]
    return "\n".join(lines) + "\n"


def _answers(details: Details) -> list[str]:
    """Both sides' answers, one row a question."""
    if not details.answers:
        return []
    rows = [f"| {cell(answer.text)} | {cell(answer.reference)} | {cell(answer.candidate)} |" for answer in details.answers]
    cut = [f"`{cell(answer.question)}`" for answer in details.answers if answer.length is None]
    told = [f"Cut off by `--steps`: {', '.join(cut)}.", ""] if cut else []
    return ["## Answers", "", "| question | full precision | package |", "|---|---|---|", *rows, "", *told]


def _layers(details: Details) -> list[str]:
    """The layers that cost most as integers."""
    if not details.layers:
        return []
    rows = [
        f"| {cost.layer} | {cost.grid} | {number(cost.error)} | {'' if cost.kl is None else number(cost.kl)} |"
        for cost in details.costly(SHOWN_LAYERS)
    ]
    head = ["| layer | grid | output error | mean KL when it alone is stored so |", "|---|---|---|---|"]
    note = [details.layers_note + ".", ""] if details.layers_note else []
    return ["## Layers that cost most", "", *head, *rows, "", *note]


def cell(text: str) -> str:
    """Text that stays in one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _divergence(judgement: Judgement) -> str:
    divergence = judgement.run.divergence
    assert divergence is not None
    if not divergence.stage:
        return f"Stage by stage: {divergence.note}."
    place = f"First diverging stage: `{divergence.stage}`" + (f", block `{divergence.block}`" if divergence.block else "")
    place += f", answer step {divergence.step}" if divergence.step else ""
    return place + (f" ({divergence.note})." if divergence.note else ".")


def _comparison(judged: JudgedComparison) -> list[str]:
    comparison = judged.comparison
    asked = f", prompt `{comparison.question}`" if comparison.question else ""
    lines = [
        f"## {comparison.title}: {verdict_words(judged)}",
        "",
        f"`{comparison.candidate}` against {comparison.baseline}{asked}; standard `{comparison.standard}`.",
        "",
    ]
    stages = ["preprocess", *STAGES, ""]
    for stage in stages:
        rows = [probe for probe in judged.probes if probe.measurement.stage == stage]
        if rows:
            lines += _table(stage or "other arrays", rows)
    return lines


def _table(stage: str, rows: list[JudgedProbe]) -> list[str]:
    shown = [name for name in COLUMNS if any(name in row.measurement.metrics for row in rows)]
    lines = [f"### {stage}", "", "| probe | shape | " + " | ".join([*shown, "limits", "verdict"]) + " |"]
    lines.append("|" + "---|" * (len(shown) + 4))
    for row in rows:
        m = row.measurement
        figures = [number(m.metrics[name]) if name in m.metrics else "" for name in shown]
        limits = ", ".join(f"{limit.metric} {limit.bound:g}" for limit in row.limits)
        why = row.describe() if not m.metrics else ""
        verdict = f"**{row.verdict}**" if row.broken or m.problem else str(row.verdict)
        shape = " x ".join(map(str, m.shape))
        lines.append(
            f"| {m.probe} | {shape} | " + " | ".join([*figures, limits, verdict + (f": {why}" if why else "")]) + " |"
        )
    return [*lines, ""]


def number(value: float) -> str:
    """A figure short enough for a table; cosines near 1 as their distance from it."""
    if math.isfinite(value) and 0.9 < value < 1 and value > 0.9999:
        return f"1 - {1 - value:.1e}"
    return f"{value:.4g}"


def write(folder: Path, judgement: Judgement) -> Path:
    """Write ``report.md`` into a folder through a temporary name; returns its path."""
    path = folder / "report.md"
    write_text(path, markdown(judgement))
    return path
