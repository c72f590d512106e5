"""``python -m parity_tests.laboratory.mlc_ladder``: run the rungs and print one line each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from parity_tests.laboratory.mlc_ladder import environment
from parity_tests.laboratory.mlc_ladder.results import CannotRun, RungResult, Status
from parity_tests.laboratory.mlc_ladder.rungs import DEMO, RUNGS, Ladder
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import EdgeproofError, ExitCode, UsageError


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(
        prog,
        "Prove an Android library without a phone.",
        "exit code 0 when every rung asked for passed, 5 when one failed, 7 when one could not run",
    )
    flags.package(made, required=False, what="take the phone library from this package (clang, structure)")
    made.add_argument("--checkpoint", type=Path, default=DEMO, metavar="DIR", help="checkpoint the rungs run (the demo)")
    made.add_argument("--rungs", default=",".join(RUNGS), metavar="LIST", help="comma-separated, of: " + ", ".join(RUNGS))
    made.add_argument("--install", action="store_true", help="install what the rungs need first (Debian, as root)")
    flags.json_file(made, "write the results here")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    names = options.rungs.split(",")
    unknown = sorted(set(names) - set(RUNGS))
    if unknown:
        raise UsageError(f"no rung is named {', '.join(unknown)}", ", ".join(RUNGS), "correct --rungs")
    if options.install:
        environment.install(console.say)
    with tempfile.TemporaryDirectory(prefix="mlc-ladder-") as scratch:
        ladder = Ladder(options.checkpoint.resolve(), options.package, Path(scratch))
        results = [climb(ladder, name) for name in RUNGS if name in names]
    if options.json_file:
        rows = json.dumps([result.to_json() for result in results], indent=2)
        options.json_file.write_text(rows + "\n", encoding="utf-8")
    return exit_code(results)


def climb(ladder: Ladder, name: str) -> RungResult:
    """Run one rung and print its line."""
    try:
        result = RUNGS[name](ladder)
    except CannotRun as reason:
        result = RungResult(name, Status.NOT_RUN, str(reason))
    except EdgeproofError as error:
        result = RungResult(name, Status.FAIL, str(error))
    console.out(f"{result.rung:10} {result.status:8} {result.detail}")
    return result


def exit_code(results: list[RungResult]) -> int:
    statuses = {result.status for result in results}
    if Status.FAIL in statuses:
        return ExitCode.PARITY_FAILED
    return ExitCode.ENVIRONMENT if Status.NOT_RUN in statuses else ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.mlc_ladder", arguments)


if __name__ == "__main__":
    sys.exit(main())
