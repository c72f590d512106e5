"""``python -m parity_tests.laboratory.real_model``: a real trained model exported, broken, calibrated, compared."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from export.backends.registry import backends
from export.plan.machine import tool_versions
from export.source.hub import demos
from parity_tests.laboratory.faults import FAULTS, of_layer, of_pictures
from parity_tests.laboratory.real_model import massive_rows, material, measure
from parity_tests.laboratory.real_model.comparison import Comparison
from parity_tests.laboratory.real_model.page import Measured, page
from parity_tests.laboratory.real_model.work import Work, passes
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.version import VERSION

LAYER = 17
"""Of 30: the decoder layer that is broken."""

BROKEN = ("cpu int4", "cpu fp32", "android int4")
"""Packages that are broken; the float32 one for what has no place in four bits."""


class Run:
    """One run of the command: what it measures, part by part, each figure once."""

    def __init__(self, work: Work, given: argparse.Namespace) -> None:
        self.work, self.given = work, given
        self.wanted = given.exports.split(";") if given.exports else None
        self.compared = given.compared.split(";") if given.compared else None

    def exports(self) -> dict[str, Any]:
        return {name: self._exported(name) for name in measure.EXPORTS if self._asked(name)}

    def calibrated(self) -> dict[str, Any]:
        made = {}
        for target in measure.ON:
            for name, more in measure.CALIBRATED.items():
                if self._asked(whole := f"{target} {name}"):
                    settings = [measure.EXPORTS[f"{target} int4"], more, self.work.samples, passes()]
                    calibrate = partial(measure.calibrated, self.work, target, name, more)
                    made[whole] = self.work.kept(whole, settings, calibrate)
        return made

    def faults(self) -> dict[str, list[str]]:
        return {name: [row for fault in self._faults(name) for row in self._broken(name, fault)] for name in BROKEN}

    def shells(self) -> dict[str, Any]:
        return {
            f"{name}, {'as the file has it' if seed is None else 'dithered'}": self.work.kept(
                f"shell {name} {seed or ''}", [name, seed], partial(measure.shelled, self.work, name, seed)
            )
            for name in self.given.shells.split(",")
            for seed in (None, material.DITHERED)
        }

    def demos(self) -> dict[str, Any]:
        return {
            f"{family}, {export}": self.work.kept(
                f"demo {family} {export}", measure.EXPORTS[export], partial(self._demo, family, export)
            )
            for family in demos()
            for export in measure.DEMOS
        }

    def _demo(self, family: str, export: str) -> dict[str, Any]:
        return measure.exported(self.work, f"demo {family} {export}", measure.EXPORTS[export], family, "demo")

    def sets(self) -> Any:
        settings = [self.work.samples, self.work.tokens, passes()]
        return self.work.kept("sets", settings, partial(measure.sets_compared, self.work))

    def photographs(self) -> Any:
        self._exported("cpu int4")
        return self.work.kept("photographs", [], partial(measure.photographed, self.work, "cpu int4"))

    def methods(self) -> Any:
        on, methods = self.given.on.split(","), self.given.methods
        settings = [on, methods, self.work.samples, self.work.tokens, passes()]
        return self.work.kept("methods", settings, partial(measure.compared, self.work, on, methods))

    def libraries(self) -> dict[str, Any]:
        return Comparison(self.work).rows(lambda name: self.compared is None or name in self.compared)

    def massive(self) -> list[str]:
        wanted = Comparison(replace(self.work, tokens=massive_rows.TOKENS))
        settings = [massive_rows.TOKENS, passes()]
        rows: list[str] = self.work.kept("massive rows", settings, partial(massive_rows.tables, wanted))
        return rows

    def _asked(self, name: str) -> bool:
        return self.wanted is None or name in self.wanted

    def _exported(self, name: str) -> Any:
        flags = measure.EXPORTS[name]
        return self.work.kept(name, flags, partial(measure.exported, self.work, name, flags))

    def _faults(self, package: str) -> Iterator[str]:
        """Names of faults, those of the other packages left out."""
        self._exported(package)
        if "fp32" in package:
            yield "transposed projection"
            return
        for fault in dict.fromkeys(one.name for one in (*FAULTS, *of_pictures("int4"), *of_layer(LAYER))):
            if "float16 cache" not in fault:
                yield fault

    def _broken(self, package: str, fault: str) -> list[str]:
        rows: list[str] = self.work.kept(
            f"fault {package} {fault}", [LAYER], partial(measure.broken, self.work, package, LAYER, fault)
        )
        return rows


PARTS: dict[str, Callable[[Run], Any]] = {
    "exports": Run.exports,
    "calibrated": Run.calibrated,
    "faults": Run.faults,
    "demos": Run.demos,
    "shells": Run.shells,
    "sets": Run.sets,
    "photographs": Run.photographs,
    "methods": Run.methods,
    "libraries": Run.libraries,
    "massive": Run.massive,
}


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Export, break, calibrate and compare a real trained model, and write the page.")
    made.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="where everything lies; what is measured is kept"
    )
    made.add_argument("--page", type=Path, metavar="FILE", help="write the page here; default stdout")
    made.add_argument("--parts", default=",".join(PARTS), metavar="P,P", help=f"of {', '.join(PARTS)}; default all")
    made.add_argument("--exports", metavar="NAME;NAME", help="exports by the page's names; default all")
    made.add_argument("--compared", metavar="NAME;NAME", help="methods and libraries by the page's names; default all")
    made.add_argument("--shells", default=",".join(measure.SHELLS), metavar="S,S", help="layouts (default %(default)s)")
    made.add_argument("--samples", type=int, default=64, help="that methods see (default %(default)s)")
    made.add_argument("--tokens", type=int, default=20_000, help="that they are compared on (default %(default)s)")
    made.add_argument("--on", default="cpu:32,cpu:64", metavar="GRID,GRID", help="grids (default %(default)s)")
    made.add_argument("--methods", default="gptq", metavar="M,M", help="default %(default)s")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    versions = {"edgeproof": VERSION, **tool_versions(backends())}
    work = Work(given.work.resolve(), given.samples, given.tokens, versions)
    work.folder.mkdir(parents=True, exist_ok=True)
    material.prepare(work)
    run = Run(work, given)
    made = {name: PARTS[name](run) for name in given.parts.split(",")}
    exports = {**made.get("exports", {}), **made.get("calibrated", {})}
    told = Measured(
        versions, passes(), given.samples, given.tokens, exports, [made["methods"]] if "methods" in made else [],
        made.get("faults", {}), made.get("shells", {}), made.get("sets"), made.get("photographs"), made.get("libraries", {}),
        made.get("massive", []), made.get("demos", {}),
    )  # fmt: skip
    written = page(told, datetime.date.today())
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
