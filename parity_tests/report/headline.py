"""The two figures that only mean something together: how alike the answers' numbers are, and how often answers are right."""

from __future__ import annotations

from parity_tests.judging.accuracy import ALL_FIVE, ASKED, EXACT, KNOWN, OWN, in_full
from parity_tests.judging.cost import cost_of, how_to_measure
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Run

NOT_MEASURED = "not measured: run with --task N"


def similarity_lines(run: Run) -> list[str]:
    """Package against full precision, the main figure first; what stands in for it where that was not compared."""
    rows, cost = run.details.similarity, cost_of(run.details)
    if cost.kl is not None and cost.agreement is not None:
        lowest, prompts = min(row.answer_cosine for row in rows), min(row.prompt_cosine for row in rows)
        equal, tokens = sum(row.equal_tokens for row in rows), sum(row.tokens for row in rows)
        cosine = sum(row.mean_cosine for row in rows) / len(rows)
        return [
            f"KL {cost.kl:.4g} nats, cosine {cosine:.4f}",
            f"means over the positions that are read, answers to {len(rows)} questions; "
            f"worst KL {max(row.kl_max for row in rows):.4g}, cosine {lowest:.4f}; {prompts:.4f} within the prompts' text",
            f"first token equal at {100 * cost.agreement:.1f} % of positions; "
            f"{equal} leading greedy tokens of {tokens} equal",
            "package as delivered against full precision, end to end",
        ]
    compared = [
        (judged.name, m.metrics)
        for judged in run.comparisons
        for m in judged.measurements
        if m.kind in (Kind.LOGITS, Kind.PROMPT_LOGITS) and "kl_mean" in m.metrics
    ]
    if not compared:
        return ["similarity not measured", f"no logits were compared; {how_to_measure(run)}"]
    name, figures = max(compared, key=lambda pair: pair[1]["kl_mean"])
    return [
        f"KL {figures['kl_mean']:.4g} nats, cosine {figures['mean_row_cosine']:.4f}",
        f"means over the positions of the prompt that is furthest off, comparison {name}",
    ]


def accuracy_lines(run: Run) -> list[str]:
    """Task accuracy beside full precision's, or in words that it was not measured."""
    if ALL_FIVE not in run.accuracy and EXACT in run.accuracy:
        return _own_lines(run)
    if ALL_FIVE not in run.accuracy:
        why = next((why for what, why in run.not_run if what == "task accuracy"), "")
        return [f"not measured: {why}" if why else NOT_MEASURED]
    lines = [f"{100 * run.accuracy[ALL_FIVE]:.1f} % right"]
    if ASKED in run.accuracy:
        lines.append(f"of {run.accuracy[ASKED]:.0f} questions about pictures the model was not trained on")
    full = run.accuracy.get(in_full(ALL_FIVE))
    if full is not None:
        points = 100 * (run.accuracy[ALL_FIVE] - full)
        lines.append(f"full precision: {100 * full:.1f} % on the same questions; difference {points:+.1f} points")
    return lines


def _own_lines(run: Run) -> list[str]:
    """The scores of answers to a user's own questions, full precision's beside them."""
    asked = run.accuracy[KNOWN]
    scored = [name for name in run.accuracy if name.startswith(OWN) and in_full(name) in run.accuracy]
    both = [(name.removeprefix(OWN), run.accuracy[name], run.accuracy[in_full(name)]) for name in scored]
    told = [f"{name} {100 * value:.1f} % (full precision {100 * full:.1f} %)" for name, value, full in both]
    return [f"{100 * run.accuracy[EXACT]:.1f} % exactly right", f"of {asked:.0f} own questions", *told]


def not_run(run: Run) -> list[tuple[str, str]]:
    """(what, why) of everything that was not run, the task too where nobody asked for it."""
    if run.accuracy or any(what == "task accuracy" for what, _ in run.not_run):
        return [*run.not_run]
    return [*run.not_run, ("task accuracy", NOT_MEASURED)]
