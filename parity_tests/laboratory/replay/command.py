"""The command line of the replay."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from parity_tests.laboratory.replay.cells import FAMILIES, TARGETS, Cell, cells
from parity_tests.laboratory.replay.difference import compare
from parity_tests.laboratory.replay.report import Result, held_bytes, to_json, to_text
from parity_tests.laboratory.replay.trees import ROOT, Exported, side
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

EXAMPLES = """\
examples:
  python -m parity_tests.laboratory.replay --base main
  python -m parity_tests.laboratory.replay --base main --targets cpu --precisions int4 --families minicpm-v,wemm
  python -m parity_tests.laboratory.replay --base 39bb49f --base-out /tmp/base --export-only
  python -m parity_tests.laboratory.replay --base /tmp/base --head ../other-tree

exit code 0 when graphs and weights are the same bytes, 1 when an export failed, 5 when graphs or weights changed
"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Export the demos from two source trees and say which bytes of the packages differ.", EXAMPLES)
    made.add_argument("--base", required=True, metavar="REV|DIR", help="revision, source tree, or folder of packages")
    made.add_argument("--head", default=str(ROOT), metavar="REV|DIR", help="the same; default: the tree of this file")
    made.add_argument("--families", type=_names, default=(), metavar="A,B", help=f"of {', '.join(FAMILIES)}")
    made.add_argument("--targets", type=_names, default=(), metavar="A,B", help=f"of {', '.join(TARGETS)}")
    made.add_argument("--precisions", type=_names, default=(), metavar="A,B", help="of int4, fp16, fp32")
    made.add_argument("--base-out", type=Path, metavar="DIR", help="keep the base's packages here")
    made.add_argument("--head-out", type=Path, metavar="DIR", help="keep the head's packages here")
    made.add_argument("--export-only", action="store_true", help="export the base into --base-out and compare nothing")
    made.add_argument("--json-file", type=Path, metavar="FILE", help="write everything here as JSON")
    flags.talk(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.replay", arguments)


def _run(given: argparse.Namespace) -> int:
    if given.export_only and given.base_out is None:
        raise UsageError("--export-only without --base-out", "both", "name a folder with --base-out")
    asked = cells(given.families, given.targets, given.precisions)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeproof-replay-"))).resolve()
        base = stack.enter_context(side(given.base, (given.base_out or scratch / "base").resolve()))
        of_base = base.exports(asked)
        if given.export_only:
            return ExitCode.OK if all(done.package for done in of_base.values()) else ExitCode.INTERNAL
        head = stack.enter_context(side(given.head, (given.head_out or scratch / "head").resolve()))
        of_head = head.exports(asked)
        results = [_result(cell, of_base[cell], of_head[cell]) for cell in asked]
    if given.json_file:
        given.json_file.write_text(to_json(results, given.base, given.head), encoding="utf-8")
    console.out(to_text(results, given.base, given.head))
    if held_bytes(results):
        return ExitCode.PARITY_FAILED
    failed = any(result.head_failure for result in results) or not any(result.difference for result in results)
    return ExitCode.INTERNAL if failed else ExitCode.OK


def _result(cell: Cell, base: Exported, head: Exported) -> Result:
    difference = compare(base.package, head.package) if base.package and head.package else None
    return Result(cell, difference, base.failure, head.failure)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


COMMAND = Command(parser, _run)
