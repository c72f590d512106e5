"""``python -m parity_tests.laboratory.real_model``: a real trained model exported, broken, calibrated, compared."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from export.backends.registry import backends
from export.plan.machine import tool_versions
from parity_tests.laboratory.real_model import measure
from parity_tests.laboratory.real_model.measure import Work
from parity_tests.laboratory.real_model.page import Measured, page
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.version import VERSION

PARTS = ("exports", "calibrated", "faults", "methods")
LAYER = 17
"""Of 30: the decoder layer that is broken."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Export, break, calibrate and compare a real trained model, and write the page.")
    made.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where everything lies; what is measured is kept"
    )
    made.add_argument("--page", type=Path, metavar="FILE", help="write the page here; default stdout")
    made.add_argument("--parts", default=",".join(PARTS), metavar="P,P", help=f"of {', '.join(PARTS)}; default all")
    made.add_argument("--exports", metavar="NAME;NAME", help="exports by the page's names; default all")
    made.add_argument("--samples", type=int, default=128, help="that methods see (default %(default)s)")
    made.add_argument("--tokens", type=int, default=20_000, help="that they are compared on (default %(default)s)")
    made.add_argument("--on", default="cpu:32,cpu:64", metavar="GRID,GRID", help="grids (default %(default)s)")
    made.add_argument(
        "--methods", default="mse-clip,gptq,gptq:tuned,awq-gptq,hqq,mixed", metavar="M,M", help="default %(default)s"
    )
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    work = Work(given.work.resolve(), given.samples, given.tokens)
    parts = given.parts.split(",")
    measure.prepare(work)
    exports: dict[str, Any] = {}
    wanted = given.exports.split(";") if given.exports else None
    if "exports" in parts:
        for name in (name for name in measure.EXPORTS if wanted is None or name in wanted):
            exports[name] = work.kept(name, partial(measure.exported, work, name, measure.EXPORTS[name]))
    if "calibrated" in parts:
        for name, more in measure.CALIBRATED.items():
            if wanted is None or f"cpu {name}" in wanted:
                exports[f"cpu {name}"] = work.kept(f"cpu {name}", partial(measure.calibrated, work, name, more))
    faults, tables = {}, []
    if "faults" in parts:
        for name in ("cpu int4", "cpu fp32"):
            faults[name] = work.kept(f"faults {name}", partial(measure.broken, work, name, LAYER))
    if "methods" in parts:
        tables.append(work.kept("methods", partial(measure.compared, work, given.on.split(","), given.methods)))
    versions = {"edgeproof": VERSION, **tool_versions(backends())}
    written = page(Measured(versions, work.samples, work.tokens, exports, tables, faults), datetime.date.today())
    if given.page is None:
        console.out(written)
    else:
        given.page.write_text(written, encoding="utf-8")
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.real_model", arguments)


if __name__ == "__main__":
    sys.exit(main())
