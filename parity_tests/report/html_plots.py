"""The plots of the HTML report and the figures behind them: stages, blocks, layers, positions, tokens."""

from __future__ import annotations

from parity_tests.judging.judge import JudgedComparison, Judgement
from parity_tests.judging.probes import PREPROCESS
from parity_tests.judging.results import ROUNDED_INPUTS, Comparison
from parity_tests.judging.run_details import Answer, Details, StageError
from parity_tests.report import svg
from parity_tests.report.html_parts import figure, folded, legend, table
from parity_tests.report.markdown_report import number
from runtime_py.contracts import STAGES

MEANING = {
    "package": "package against the reference",
    "golden": "package against the published code",
    "implementation": "implementation: package against the reference with the same numbers",
    "kernels": "kernels: the package with its own roundings against the same reference",
    "rounding-flip": "the same, its gate input moved across a rounding boundary",
    ROUNDED_INPUTS: "rounded inputs: that reference, rounding inputs as the kernels do, against itself without",
    "loss": "loss: that reference against full precision",
    "wire": "server against the reference with the package's numbers",
    "sample": "package against the sample recorded at export",
    "reference": "our reference against the published code",
}
"""What is compared in every run. What is shown only where something is other says with what."""

SHOWN_LAYERS = 12


def _style(name: str) -> str:
    return {"loss": "two", ROUNDED_INPUTS: "two", "kernels": "three"}.get(name, "one")


def stage_plot(judgement: Judgement) -> str:
    """The worst relative error of every stage, end to end, as the judged comparisons found it."""
    rows: list[svg.Bar] = []
    figures: list[tuple[str, ...]] = []
    for stage in (PREPROCESS, *STAGES):
        for title, comparison in _by_title(judgement).items():
            name = comparison.name
            probes = [
                (probe.measurement.metrics, probe)
                for judged in judgement.comparisons
                if judged.comparison.title == title
                for probe in judged.probes
                if probe.measurement.stage == stage and probe.measurement.metrics
            ]
            values = [metrics.get("relative_max", metrics.get("mismatches", 0.0)) for metrics, _ in probes]
            if not probes or (stage == PREPROCESS and name == "loss"):
                continue
            limits = [limit.bound for _, p in probes for limit in p.limits if limit.metric in ("relative_max", "max_abs")]
            tokens = [p for _, p in probes if "mismatches" in p.measurement.metrics]
            worst = (
                max(m["relative_max"] for m, _ in probes if "relative_max" in m)
                if len(tokens) < len(probes)
                else max(values)
            )
            rows.append(
                svg.Bar(
                    "" if figures and figures[-1][0] == stage else stage,
                    worst,
                    _style(name),
                    min(limits) if limits else None,
                )
            )
            figures.append((stage, title, number(worst), f"{min(limits):g}" if limits else "none"))
    if not rows:
        return ""
    said = f"largest error {max(bar.value for bar in rows):.2g} over {len(rows)} bars"
    below = _legend({title for _, title, *_ in figures}, judgement, any(bar.limit is not None for bar in rows))
    below += folded("Figures", table("Error per stage", ("stage", "comparison", "error", "limit"), figures, (2, 3)))
    return figure("Error per stage, end to end", svg.bars("Error per stage", rows, said), below)


def _by_title(judgement: Judgement) -> dict[str, Comparison]:
    """One comparison of each title, in order."""
    return {judged.comparison.title: judged.comparison for judged in judgement.comparisons}


def _meaning(comparison: Comparison) -> str:
    name = comparison.name
    return f"{comparison.title.removesuffix(name)}{MEANING.get(name, f'{name}: against {comparison.baseline}')}"


def _legend(titles: set[str], judgement: Judgement, limits: bool) -> str:
    entries = [(_style(each.name), _meaning(each)) for title, each in _by_title(judgement).items() if title in titles]
    return legend([*entries, *([("limit", "limit")] if limits else [])])


def block_plots(details: Details) -> str:
    """One plot a stage and comparison that has blocks, the stage's output last."""
    return "".join(_blocks(stage) for stage in details.stages if stage.blocks)


def _blocks(stage: StageError) -> str:
    style = _style(stage.comparison)
    rows = [svg.Bar(name, value, style) for name, value in stage.blocks] + [svg.Bar("output", stage.error, style)]
    worst = max(rows, key=lambda bar: bar.value)
    title = f"{stage.stage}: {stage.comparison}"
    said = f"error per block on the reference's own inputs; largest {worst.value:.2g} at {worst.label}"
    figures = [(bar.label, number(bar.value)) for bar in rows]
    below = f'<p class="soft">{MEANING[stage.comparison]}; on the reference\'s own inputs, log scale</p>'
    below += folded("Figures", table(f"Error per block, {title}", ("block", "error"), figures, (1,)))
    return figure(title, svg.bars(f"Error per block, {title}", rows, said), below)


def layer_plot(details: Details) -> str:
    """The layers that cost most as integers, and all of them behind a fold."""
    if not details.layers:
        return ""
    costly = details.costly()
    by_kl = costly[0].kl is not None
    shown = costly[:SHOWN_LAYERS]
    rows = [svg.Bar(cost.layer.removeprefix("decoder."), (cost.kl or 0.0) if by_kl else cost.error, "two") for cost in shown]
    what = "mean KL in nats when the layer alone is stored as integers" if by_kl else "output error over output"
    figures = [
        (cost.layer, cost.grid, number(cost.error), "not measured" if cost.kl is None else number(cost.kl))
        for cost in costly
    ]
    head = ("layer", "grid", "output error", "KL alone")
    note = f'<p class="soft">{what}{"; " + details.layers_note if details.layers_note else ""}</p>'
    below = note + folded(f"All {len(costly)} layers", table("Cost of every quantised layer", head, figures, (2, 3)))
    return figure("Layers that cost most", svg.bars("Layers that cost most", rows, f"{what}; most: {shown[0].layer}"), below)


def position_plots(judgement: Judgement) -> str:
    """KL per position, prompt and answer in one line, one plot a question."""
    questions = dict.fromkeys(judged.comparison.question for judged in judgement.comparisons)
    return "".join(_positions(question, judgement) for question in questions)


def _positions(question: str, judgement: Judgement) -> str:
    series: list[svg.Line] = []
    figures: list[tuple[str, ...]] = []
    split = None
    comparisons = _by_title(judgement)
    for judged in judgement.comparisons:
        comparison, name = judged.comparison, judged.comparison.name
        if comparison.question != question or (name == "implementation" and _has(judgement, "kernels")):
            continue
        curves = {p.measurement.probe: p.measurement.series for p in judged.probes if "kl" in p.measurement.series}
        prompt, answer = curves.get("prefill_logits", {}), curves.get("step_logits", {})
        values = [*prompt.get("kl", ()), *answer.get("kl", ())]
        first = [*prompt.get("top1", ()), *answer.get("top1", ())]
        if not values:
            continue
        split = len(prompt.get("kl", ()))
        other = [place for place, same in enumerate(first) if not same]
        series.append(svg.Line(comparison.title, values, _style_of(len(series)), other))
        pairs = enumerate(zip(values, first, strict=True))
        figures += [(comparison.title, str(place), number(kl), "yes" if same else "no") for place, (kl, same) in pairs]
    if not series:
        return ""
    entries = [
        (
            line.style,
            f"{_meaning(comparisons[line.name])} ({len(line.marked)} of {len(line.values)} first tokens differ)",
        )
        for line in series
    ]
    worst = max(max(line.values) for line in series)
    said = f"KL divergence per position, at most {worst:.2g} nats; rings mark positions whose first token differs"
    head = ("comparison", "position", "KL", "same first token")
    title = f"KL per position{f', question {question}' if question else ''}"
    below = legend([*entries, ("soft", "rings: another token comes first")])
    below += folded("Figures", table(title, head, figures, (1, 2)))
    return figure(title, svg.lines(title, series, said, split), below)


def _style_of(index: int) -> str:
    return "two" if index else "one"


def _has(judgement: Judgement, name: str) -> bool:
    return any(judged.comparison.name == name for judged in judgement.comparisons)


def token_plot(answer: Answer) -> str:
    """Which greedy tokens are equal, place by place, those after the answer's end included."""
    reference, candidate = answer.reference_ids, answer.candidate_ids
    drawing = svg.tokens(f"Token agreement, question {answer.question}", reference, candidate, answer.length)
    if answer.length is not None:
        drawing += '<p class="soft">The rule marks the stop token; the check goes on behind it.</p>'
    rows = [(str(place), str(a), str(b)) for place, (a, b) in enumerate(zip(reference, candidate, strict=False))]
    ids = table(
        "Greedy tokens", ("place", "reference", "package"), rows, (0, 1, 2), [i for i, r in enumerate(rows) if r[1] != r[2]]
    )
    return drawing + folded("Token ids", ids)


def golden_tokens(judged: JudgedComparison) -> str:
    """Token agreement of the token probes of a comparison that has no recorded answers."""
    tokens = [p.measurement for p in judged.probes if {"reference", "candidate"} <= set(p.measurement.series)]
    return "".join(
        figure(f"Token agreement: {m.probe}", svg.tokens(m.probe, m.series["reference"], m.series["candidate"]))
        for m in tokens
    )
