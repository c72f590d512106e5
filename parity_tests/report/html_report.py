"""The report as one HTML page that stands alone: no script, nothing loaded, readable on a phone and by a screen reader."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from parity_tests.judging.judge import JudgedComparison, Judgement, Verdict
from parity_tests.judging.probes import PREPROCESS
from parity_tests.judging.run_details import Answer
from parity_tests.report import html_plots as plots
from parity_tests.report.headline import accuracy_lines, not_run, similarity_lines
from parity_tests.report.html_parts import badge, folded, table
from parity_tests.report.markdown_report import number
from parity_tests.report.meaning import comparison_verdict, meaning, verdict_words
from parity_tests.report.page_style import CSS
from parity_tests.report.text_file import write as write_text
from runtime_py.contracts import STAGES

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html(judgement: Judgement) -> str:
    """The whole page."""
    run = judgement.run
    title = f"{run.case}: {run.family} {run.variant}, {run.target}, {run.precision}"
    sections = [
        _section("Similarity and task accuracy", _headline(judgement)),
        _section("Answers", _answers(judgement)),
        _section("Where the error arises", _inside(judgement)),
        _section("Token agreement and KL per position", _positions(judgement)),
        _section("Layers", _layers(judgement)),
        _section("Every comparison", "".join(_comparison(judged) for judged in judgement.comparisons)),
        _section("Limits and their reasons", _limits(judgement)),
        _section("Waivers", _waivers(judgement)),
        _section("Not run", _not_run(judgement)),
        _section("Environment", _environment(judgement)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(str(judgement.verdict))}: {escape(title)}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<style>{CSS}</style></head>\n<body>{_top(judgement, title)}<main>{''.join(sections)}</main>"
        f"<footer>edgeproof parity report; the same figures are in report.json and run.json.</footer></body></html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>\n" if content else ""


def _top(judgement: Judgement, title: str) -> str:
    """Verdict, first failure, first diverging stage, and the way through the stages with a mark on each."""
    run, divergence = judgement.run, judgement.run.divergence
    told = meaning(judgement)
    said = escape(judgement.first_failure or f"Implementation {told.implementation}.")
    if judgement.verdict is Verdict.NOT_RUN:
        said = "Nothing could be compared; see Not run."
    where = f"<p>What {escape(run.precision)} costs: <strong>{escape(told.cost_words)}</strong></p>"
    if divergence is not None and divergence.stage:
        note = f" ({escape(divergence.note)})" if divergence.note else ""
        where += f"<p>First divergence: <strong>{escape(divergence.place)}</strong>{note}</p>"
    elif divergence is not None:
        where += f"<p>Stage by stage: {escape(divergence.note)}.</p>"
    steps = []
    for stage in (PREPROCESS, *STAGES):
        verdict = _stage_verdict(judgement, stage)
        style = ' class="fail"' if verdict == "fail" else ""
        steps.append(f"<li{style}>{escape(stage)} {badge(verdict)}</li>")
    return (
        f"<header><h1>{escape(title)}</h1><div class='banner {judgement.verdict}'><p>{badge(str(judgement.verdict))} "
        f"<strong>{said}</strong></p>{where}</div>"
        f"<ol class='way' aria-label='Stages in pipeline order'>{''.join(steps)}</ol>"
        f"<p class='soft'>Run by {escape(run.backend)}.</p></header>"
    )


def _stage_verdict(judgement: Judgement, stage: str) -> str:
    verdicts = {
        probe.verdict for judged in judgement.comparisons for probe in judged.probes if probe.measurement.stage == stage
    }
    for verdict in (Verdict.FAIL, Verdict.PASS, Verdict.REPORTED):
        if verdict in verdicts:
            return str(verdict)
    return "not compared"


def _headline(judgement: Judgement) -> str:
    def card(heading: str, lines: Sequence[str]) -> str:
        first, *rest = lines
        more = "".join(f"<p class='soft'>{escape(line)}</p>" for line in rest)
        return f"<div class='card'><h3>{heading}</h3><p class='big'>{escape(first)}</p>{more}</div>"

    similar, accurate = similarity_lines(judgement.run), accuracy_lines(judgement.run)
    figures = judgement.run.accuracy
    rows = table("Task accuracy", ("figure", "value"), [(name, number(value)) for name, value in figures.items()], (1,))
    more = folded("All task figures", rows) if figures else ""
    return f"<div class='grid'>{card('Similarity', similar)}{card('Task accuracy', accurate)}</div>{more}"


def _answers(judgement: Judgement) -> str:
    return "".join(_answer(answer) for answer in judgement.run.details.answers) or (
        "<p class='soft'>No answers were recorded: only a package compared with its checkpoint has them.</p>"
    )


def _answer(answer: Answer) -> str:
    picture = ""
    if answer.picture:
        width, height = answer.size
        words = f"The picture of question {answer.question}, {width} by {height} pixels, scaled down"
        picture = f'<img alt="{escape(words)}" src="data:image/png;base64,{answer.picture}">'
    cut = (
        ""
        if answer.length is not None
        else f"<p class='soft'>Cut off after {len(answer.reference_ids)} tokens (--steps).</p>"
    )

    def side(name: str, text: str) -> str:
        return f"<div><h3>{name}</h3><blockquote>{escape(text) or '<em>nothing</em>'}</blockquote></div>"

    same = "Both say the same." if answer.reference == answer.candidate else "The answers differ."
    if answer.truth:
        same += f" Right: {' or '.join(dict.fromkeys(answer.truth)).removesuffix('.')}. {_scored(answer)}"
    return (
        f"<article class='card' style='margin-bottom:14px'><h3>{escape(answer.question)}: {escape(answer.text)}</h3>"
        f"<div class='pair'>{f'<div>{picture}</div>' if picture else ''}{side('Full precision', answer.reference)}"
        f"{side('Package', answer.candidate)}</div><p>{escape(same)}</p>{cut}"
        f"{plots.token_plot(answer)}</article>"
    )


def _scored(answer: Answer) -> str:
    """Both sides' scores, in one sentence."""
    pairs = ((name, value, answer.reference_scores.get(name)) for name, value in answer.candidate_scores.items())
    shown = [
        f"{name} {number(value)} (full precision {'-' if full is None else number(full)})" for name, value, full in pairs
    ]
    return f"Package: {', '.join(shown)}."


def _inside(judgement: Judgement) -> str:
    details = judgement.run.details
    why = details.unmeasured or "only a package compared with its checkpoint has them"
    blocks = plots.block_plots(details)
    missing = "" if blocks else f"<p class='soft'>Errors per block were not measured: {escape(why)}.</p>"
    notes = "".join(f"<p class='soft'>{escape(s.stage)}: {escape(s.note)}</p>" for s in details.stages if s.note)
    return f"<div class='grid'>{plots.stage_plot(judgement)}{blocks}</div>{missing}{notes}"


def _positions(judgement: Judgement) -> str:
    tokens = "" if judgement.run.details.answers else "".join(map(plots.golden_tokens, judgement.comparisons))
    drawn = plots.position_plots(judgement) + tokens
    return (
        f"<div class='grid'>{drawn}</div>" if drawn else "<p class='soft'>No logits were compared position by position.</p>"
    )


def _layers(judgement: Judgement) -> str:
    return plots.layer_plot(judgement.run.details)


def _comparison(judged: JudgedComparison) -> str:
    comparison = judged.comparison
    rows: list[tuple[str, ...]] = []
    failed: list[int] = []
    for probe in judged.probes:
        m = probe.measurement
        for limit in probe.limits if m.metrics else ():
            broken = limit in probe.broken
            value = m.metrics.get(limit.metric)
            failed += [len(rows)] if broken or (probe.verdict is Verdict.FAIL and value is None) else []
            shown = "not measured" if value is None else number(value)
            verdict = "fail" if broken else str(probe.verdict) if value is None else "pass"
            rows.append((f"{m.probe} {limit.metric}", shown, f"{limit.bound:g}", verdict))
        if not probe.limits or not m.metrics:
            failed += [len(rows)] if probe.verdict is Verdict.FAIL else []
            rows.append((m.probe, probe.describe() or "no limit applies", "", str(probe.verdict)))
    verdict = str(comparison_verdict(judged))
    asked = f", question {comparison.question}" if comparison.question else ""
    text = f"{comparison.candidate} against {comparison.baseline}; standard {comparison.standard}"
    head = ("figure", "value", "limit", "verdict")
    every = [
        (
            p.measurement.probe,
            *(number(p.measurement.metrics[n]) if n in p.measurement.metrics else "" for n in _metrics(judged)),
        )
        for p in judged.probes
    ]
    names = ("probe", *_metrics(judged))
    content = f"<p class='soft'>{escape(text)}</p>" + table("Judged figures", head, rows, (1, 2), failed)
    content += folded("All metrics", table("All metrics", names, every, range(1, len(names))))
    title = f"{escape(comparison.title)}{escape(asked)} {badge(verdict_words(judged))}"
    return folded(title, content, opened=verdict == "fail", card=True)


def _metrics(judged: JudgedComparison) -> list[str]:
    return list(dict.fromkeys(name for probe in judged.probes for name in probe.measurement.metrics))


def _limits(judgement: Judgement) -> str:
    rows = dict.fromkeys(
        (str(judged.comparison.standard), str(probe.measurement.kind), limit.metric, f"{limit.bound:g}", limit.reason)
        for judged in judgement.comparisons
        for probe in judged.probes
        for limit in probe.limits
    )
    if not rows:
        return "<p class='soft'>No limit applied.</p>"
    head = ("standard", "kind", "metric", "limit", "reason")
    return folded(f"{len(rows)} limits", table("Limits that were applied", head, list(rows), (3,)), card=True)


def _waivers(judgement: Judgement) -> str:
    rows = judgement.run.details.waivers
    if not rows:
        return "<p class='soft'>None.</p>"
    return table("What the maker of the package asked to be let off", ("waiver", "meaning"), rows)


def _not_run(judgement: Judgement) -> str:
    rows = not_run(judgement.run)
    rows += [
        (f"{judged.comparison.title}: {probe.measurement.probe}", probe.describe())
        for judged in judgement.comparisons
        for probe in judged.probes
        if probe.verdict is Verdict.NOT_PROBED
    ]
    return table("What this run did not look at, and why", ("what", "why"), rows) if rows else "<p class='soft'>Nothing.</p>"


def _environment(judgement: Judgement) -> str:
    rows = [*judgement.run.environment.items()]
    command = f"<pre>{escape(judgement.run.command)}</pre>" if judgement.run.command else ""
    return command + folded("Versions", table("Versions", ("what", "version"), rows), card=True)


def write(folder: Path, judgement: Judgement) -> Path:
    """Write ``report.html`` into a folder through a temporary name; returns its path."""
    path = folder / "report.html"
    write_text(path, html(judgement))
    return path
