"""Commands on stored runs, which run nothing: ``judge`` with other limits, ``diff`` of two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.command import console, flags
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

if TYPE_CHECKING:
    from parity_tests.judging.standards import Table

DIFF_HELP = """\
exit code 0 when RUN_B is not worse, 5 when it is worse in a judged way

Worse in a judged way: the verdict falls; a figure leaves its limit, or is not judged any more; a figure outside its limit
both times is a tenth further outside; task accuracy falls by more than --task-points.

"""


def judge_parser(prog: str) -> Parser:
    """The flags of ``judge``."""
    made = Parser(prog, "Judge a stored run again; nothing is run.")
    made.add_argument("run", type=Path, metavar="RUN", help="a run.json, or the --report-dir it lies in")
    _common(made)
    add_presets(made)
    made.add_argument("--report-dir", type=flags.folder_to_write, metavar="DIR", help="write the reports here")
    return made


def add_presets(made: Parser) -> None:
    """Limits on what the stored precision costs (`parity_tests.judging.presets`)."""
    preset = made.add_mutually_exclusive_group()
    for name, text in (
        ("release", "fail where int4 costs more than a release may, or a part was not run"),
        ("strict", "fail where any answer or token differs from full precision"),
    ):
        preset.add_argument(f"--{name}", dest="preset", action="store_const", const=name, help=text)


def diff_parser(prog: str) -> Parser:
    """The flags of ``diff``."""
    made = Parser(prog, "What got better or worse between two stored runs; nothing is run.", DIFF_HELP)
    made.add_argument("before", type=Path, metavar="RUN_A", help="a run.json, or the --report-dir it lies in")
    made.add_argument("after", type=Path, metavar="RUN_B", help="the same of the later run")
    _common(made)
    made.add_argument("--task-points", type=float, default=1.0, metavar="P", help="points of task accuracy that may be lost")
    made.add_argument("--report-dir", type=flags.folder_to_write, metavar="DIR", help="write diff.md and diff.json here")
    return made


def add_thresholds(made: Parser) -> None:
    """A user's own limits (`parity_tests.judging.own_limits.read_limits`)."""
    made.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="limits (JSON or TOML) that go before the built-in ones"
    )


def _common(made: Parser) -> None:
    add_thresholds(made)
    flags.json_result(made)
    flags.json_file(made)
    flags.talk(made)


def diff(options: argparse.Namespace, table: Table | None) -> int:
    """Compare two stored runs; returns the exit code."""
    from parity_tests.judging.diff import difference, to_json
    from parity_tests.judging.judge import judge
    from parity_tests.judging.results import read
    from parity_tests.report import diff_report, json_report, text_file

    changes = difference(judge(read(options.before), table), judge(read(options.after), table), options.task_points)
    text = diff_report.markdown(changes)
    if options.json:
        console.out_json(to_json(changes))
    else:
        console.out(text.rstrip("\n"))
    if options.json_file is not None:
        json_report.write(options.json_file, to_json(changes))
    if options.report_dir is not None:
        json_report.write(options.report_dir / "diff.json", to_json(changes))
        text_file.write(options.report_dir / "diff.md", text)
    return int(ExitCode.PARITY_FAILED if changes.worse else ExitCode.OK)
