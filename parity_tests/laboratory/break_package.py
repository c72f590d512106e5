"""A package broken on purpose, and what its check says: whether every fault is caught, and named.

    python -m parity_tests.laboratory.break_package PACKAGE CHECKPOINT --layer 17

Of the deliberate faults (`parity_tests.laboratory.faults` in graphs, `parity_tests.laboratory.phone_faults` in a phone's
weight files and library) those are made, each in a copy of its own, that the package has a place for; the others are
told. The exit code is 5 when one is not caught or not named.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_tests.check.package_check import CheckOptions, Result, check
from parity_tests.laboratory.faults import FAULTS, Fault, of_layer, of_pictures
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from runtime_py import package as packages
from runtime_py.backends.records import MLC
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER, EMBED
from runtime_py.errors import ExitCode, UsageError

log = logging.getLogger("edgeproof.parity")

STEPS = 3
NO_PLACE = (StopIteration, KeyError, ValueError, AttributeError, AssertionError)
"""What `Fault.apply` raises where a graph has no such tensor or node, or nothing changed."""


@dataclass(frozen=True)
class Outcome:
    """What the check says of one fault; ``result`` is None where the package has no place for it."""

    fault: Fault
    result: Result | None

    @property
    def named(self) -> bool:
        """Whether stage, block and step are the broken ones."""
        divergence = None if self.result is None else self.result.judgement.run.divergence
        return (
            divergence is not None
            and (divergence.stage, divergence.step) == (self.fault.stage, self.fault.step)
            and divergence.block in (self.fault.block, self.fault.also or self.fault.block)
            and self.fault.inside in divergence.note
        )

    @property
    def caught(self) -> bool:
        return self.result is not None and self.result.verdict == "fail"

    def line(self) -> str:
        """A row of a Markdown table."""
        if self.result is None:
            return f"| {self.fault.name} | no place for it | | |"
        divergence = self.result.judgement.run.divergence
        place = "" if divergence is None else f"{divergence.place}; {divergence.note}"
        said = f"{'caught' if self.caught else '**missed**'}, {'named' if self.named else '**not named**'}"
        return f"| {self.fault.name} | {said} | {place} | {self.result.first_failure or ''} |"


def outcomes(package: Path, checkpoint: Checkpoint, layer: int, wanted: str = "", every: bool = True) -> Iterator[Outcome]:
    """Every fault made in a copy of the package and checked.

    Args:
        layer: decoder layer of the faults that sit in one.
        wanted: a fault's name, or part of several; "" for all.
        every: whether all questions of the check are asked, or the one that a fault of that stage shows in.
    """
    done: set[object] = set()
    chosen = faults_of(package, checkpoint, layer)
    exactly = wanted in {fault.name for fault in chosen}
    for fault in chosen:
        if (fault.name != wanted if exactly else wanted not in fault.name) or fault.apply in done:
            continue
        done.add(fault.apply)
        with tempfile.TemporaryDirectory(prefix="edgeproof-broken-") as scratch:
            copy = Path(shutil.copytree(package, Path(scratch) / "package"))
            try:
                fault.apply(copy)
            except NO_PLACE as error:
                log.debug("%s has no place in this package: %r", fault.name, error)
                yield Outcome(fault, None)
                continue
            only = "" if every else "text" if fault.stage in (DECODER, EMBED) else "wide"
            # what only a library holds may be smaller than float16's rounding: a rotary base 1 % off
            asked = CheckOptions(steps=STEPS, trust=True, only=only, rebuild=fault.rebuild)
            yield Outcome(fault, check(copy, checkpoint, asked))


def faults_of(package: Path, checkpoint: Checkpoint, layer: int) -> tuple[Fault, ...]:
    """The faults that packages of this backend can have."""
    if packages.read(package).runtime_backend == MLC.runtime_name:
        from parity_tests.laboratory.phone_faults import phone_faults

        return phone_faults(checkpoint.spec, layer)
    elsewhere = {fault.name for fault in of_layer(layer)}
    return (*(fault for fault in FAULTS if fault.name not in elsewhere), *of_pictures("int4"), *of_layer(layer))


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Break a package on purpose and see whether its check catches and names every fault.")
    made.add_argument("package", type=Path, metavar="PACKAGE", help="a cpu or phone package")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what it was made from")
    made.add_argument("--calibration", type=Path, metavar="DIR", help="the calibration whose codes it holds")
    made.add_argument("--layer", type=int, default=1, help="decoder layer of the faults in one layer (default %(default)s)")
    made.add_argument("--fault", default="", metavar="TEXT", help="only faults whose name has this in it")
    made.add_argument(
        "--one-question",
        action="store_true",
        help="ask of the check's questions the one the fault shows in: phones are slow",
    )
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    checkpoint = open_checkpoint(given.checkpoint, given.calibration)
    console.out("| fault | the check | divergence | first failure |\n|---|---|---|---|")
    good, made = True, 0
    for outcome in outcomes(given.package, checkpoint, given.layer, given.fault, not given.one_question):
        console.out(outcome.line())
        made += outcome.result is not None
        good = good and (outcome.result is None or (outcome.caught and outcome.named))
    if not made:
        what, next_step = "no fault has a place in this package", "choose another --layer or --fault"
        raise UsageError(what, "a package with that layer", next_step)
    return ExitCode.OK if good else ExitCode.PARITY_FAILED


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.break_package", arguments)


if __name__ == "__main__":
    sys.exit(main())
