"""``python -m parity_tests.laboratory.calibration_tables FILE...``: what ``compare --json`` measured.

Each model's table, and the methods counted over all of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.evaluation.compare_table import from_json, wide_table
from parity_tests.laboratory.calibration_tables.counts import Comparison, counts_table
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What many runs of the verb compare measured: each model's table, and the methods counted over all.")
    made.add_argument("files", nargs="+", type=Path, metavar="FILE", help="output of edgeproof calibrate compare --json")
    made.add_argument("--counts-only", action="store_true", help="leave the table of each model out")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    tables = joined([read(path) for path in given.files])
    if not given.counts_only:
        for one in tables:
            outliers = f", outlier channels {one.outliers:g} times larger" if one.outliers else ""
            console.out(f"{one.model} ({one.pictures} pictures{outliers})\n\n{wide_table(one.rows)}\n")
    console.out(counts_table(tables))
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.calibration_tables", arguments)


def joined(tables: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of one model, with equal outliers, as one; of rows that both have, the first stays.

    Raises:
        UsageError: they asked about different numbers of pictures.
    """
    models: dict[tuple[str, float], Comparison] = {}
    for one in tables:
        before = models.setdefault((one.model, one.outliers), replace(one, rows=[]))
        if before.pictures != one.pictures:
            raise UsageError(
                f"comparisons of {one.model} with {before.pictures} and {one.pictures} pictures",
                "the same pictures in all files of a model", "compare again with the same --pictures",
            )  # fmt: skip
        known = {(row.name, row.setting) for row in before.rows}
        rows = [*before.rows, *(row for row in one.rows if (row.name, row.setting) not in known)]
        models[one.model, one.outliers] = replace(one, rows=rows)
    return list(models.values())


def read(path: Path) -> Comparison:
    """One file.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["kind"] != "comparison":
            raise ValueError(f"kind {table['kind']}")
        return Comparison(table["model"], table["pictures"], from_json(table), table["outliers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no comparison: {error}", "what python -m calibrate compare --json printed", "name another file"
        ) from error
