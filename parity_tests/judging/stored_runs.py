"""Commands on stored runs, which run nothing: ``judge`` with other limits, ``diff`` of two."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime_py.errors import ExitCode

DIFF_HELP = """\
exit codes: 0 when RUN_B is not worse, 5 when it is worse in a judged way, 2 usage

Worse in a judged way: the verdict falls; a figure leaves its limit, or is not judged any more; a figure outside its limit
both times is a tenth further outside; task accuracy falls by more than --task-points.
"""


def judge_parser(make: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The flags of ``python -m parity_tests judge``."""
    made = make(prog="python -m parity_tests judge", description="Judge a stored run again; nothing is run.")
    made.add_argument("run", type=Path, metavar="RUN", help="a run.json, or the --report-dir it lies in")
    _common(made)
    made.add_argument("--report-dir", type=Path, metavar="DIR", help="write the reports here")
    return made


def diff_parser(make: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The flags of ``python -m parity_tests diff``."""
    made = make(
        prog="python -m parity_tests diff",
        description="What got better or worse between two stored runs; nothing is run.",
        epilog=DIFF_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("before", type=Path, metavar="RUN_A", help="a run.json, or the --report-dir it lies in")
    made.add_argument("after", type=Path, metavar="RUN_B", help="the same of the later run")
    _common(made)
    made.add_argument("--task-points", type=float, default=1.0, metavar="P", help="points of task accuracy that may be lost")
    made.add_argument("--report-dir", type=Path, metavar="DIR", help="write diff.md and diff.json here")
    return made


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="limits (JSON or TOML) that go before the built-in ones"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result here")


def diff(arguments: Sequence[str], make: type[argparse.ArgumentParser]) -> int:
    """Compare two stored runs; returns the exit code."""
    from parity_tests import thresholds
    from parity_tests.judging.diff import difference, to_json
    from parity_tests.judging.judge import judge
    from parity_tests.judging.results import read
    from parity_tests.report import diff_report, json_report, text_file

    options = diff_parser(make).parse_args(arguments)
    table = None if options.thresholds is None else thresholds.load(options.thresholds)
    found = difference(judge(read(options.before), table), judge(read(options.after), table), options.task_points)
    text = diff_report.markdown(found)
    sys.stdout.write(text)
    if options.json is not None:
        json_report.write(options.json, to_json(found))
    if options.report_dir is not None:
        json_report.write(options.report_dir / "diff.json", to_json(found))
        text_file.write(options.report_dir / "diff.md", text)
    return int(ExitCode.PARITY_FAILED if found.worse else ExitCode.OK)
