"""``edgeproof calibrate compare``: every method on every grid, on a demo or any other checkpoint, in one table."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from calibrate.command.cli import add_samples
from calibrate.evaluation.compare_table import Row, as_json, long_table, wide_table
from calibrate.evaluation.comparison import (
    DEFAULT_SETTINGS,
    MIXED,
    TOKENS,
    ComparisonRequest,
    Contestant,
    GridSetting,
)
from calibrate.methods import METHODS
from calibrate.request import SAMPLES, CalibrationRequest
from export.cluster import flags as cluster
from export.cluster.jobs import Died, outcomes
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

log = logging.getLogger("edgeproof")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Measure every method on every grid, on a demo's task or on held-out text: one Markdown table.")
    made.add_argument("--model", required=True, metavar="MODEL", help="family alias, hub id or checkpoint folder")
    made.add_argument(
        "--weights",
        metavar="demo|DIR",
        help="the demo checkpoint or a folder with the weights of MODEL; default demo for an alias",
    )
    made.add_argument(
        "--text",
        action="append",
        type=Path,
        metavar="FILE",
        help="plain text to compare on, repeatable: perplexity, and distance from full precision at every token",
    )
    made.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"of the text; default {TOKENS}")
    settings = ", ".join(map(str, DEFAULT_SETTINGS))
    made.add_argument("--on", action="append", metavar="TARGET[:BLOCK[:asymmetric]]", help=f"repeatable; default {settings}")
    made.add_argument(
        "--methods", default=",".join([*METHODS, MIXED]), metavar="M,M",
        help="default: all, and gptq after a search for mixed bits; method:text leaves the pictures out, "
        "method:general and method:machine take those samples, method:tuned tunes its scales in the end",
    )  # fmt: skip
    made.add_argument(
        "--mixed", type=float, default=20.0, metavar="P", help="percent of bytes that mixed may add; default 20"
    )
    made.add_argument("--pictures", type=int, default=100, metavar="N", help="held-out pictures; default 100")
    made.add_argument(
        "--held-out", type=int, default=0, metavar="N",
        help="a further row where the check on N other pictures sends blocks back to rounding; default 0, no check",
    )  # fmt: skip
    made.add_argument(
        "--outliers", type=float, default=0.0, metavar="SIZE",
        help="give the demo outlier channels SIZE times larger, which changes nothing in full precision; default none",
    )  # fmt: skip
    made.add_argument("--wide", action="store_true", help="one line a method, one column a grid")
    add_samples(made)
    cluster.add(made, "methods")
    flags.json_result(made)
    flags.talk(made)
    return made


def default_weights(model: str) -> str | None:
    """The demo checkpoint of an alias; the weights of a folder or a hub id are its own.

    Raises:
        UsageError: a name that stands for nothing.
    """
    from export.families.names import meant
    from export.source.hub import DEMO

    return DEMO if meant(model).published is not None and "/" not in model else None


def request_of(options: argparse.Namespace) -> ComparisonRequest:
    """What the flags ask for.

    Raises:
        UsageError: a grid, method, sample or size that does not exist.
    """
    settings = tuple(GridSetting.parse(text) for text in options.on or ()) or DEFAULT_SETTINGS
    base = CalibrationRequest(
        model=options.model,
        weights=options.weights or default_weights(options.model),
        target=settings[0].target,
        precision="int4",
        method="mse-clip",
        output=Path("unused"),
        samples=options.samples or (None if options.data else SAMPLES),
        data=options.data,
        sample_set=options.sample_set,
        text_only=options.text_only,
        seed=flags.seed_number(options.seed),
        held_out=0,
    )
    return ComparisonRequest(
        base=base,
        settings=settings,
        contestants=tuple(Contestant.parse(text) for text in options.methods.split(",")),
        mixed_share=options.mixed / 100,
        pictures=options.pictures,
        held_out=options.held_out,
        outliers=options.outliers,
        text=tuple(options.text or ()),
        tokens=options.tokens,
    )


def _run(options: argparse.Namespace) -> int:
    from calibrate.evaluation import comparison_jobs

    results = cluster.results_of(options, comparison_jobs.FORM)
    listed = comparison_jobs.jobs(request_of(options), stamped=results is not None)
    measured: dict[str, list[Row]] = {}
    for outcome in outcomes(listed, cluster.executor_of(options), results):
        if isinstance(outcome.result, Died):
            log.error("%s was not measured: %s", outcome.job.name, outcome.result.why)
            continue
        measured[outcome.job.name] = outcome.result
        for row in outcome.result:
            log.info("%s", long_table([row]).splitlines()[-1])
    rows = [row for job in listed for row in measured.get(job.name, ())]
    if options.json:
        console.out_json(as_json(options.model, options.pictures, rows, options.outliers))
    else:
        console.out(wide_table(rows) if options.wide else long_table(rows))
    return ExitCode.OK if len(measured) == len(listed) else ExitCode.ENVIRONMENT


COMMAND = Command(parser, _run)
