"""The command line of the wheel's check."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from parity_tests.laboratory.wheel.contents import DEMOS, faults
from parity_tests.laboratory.wheel.use import TORCH, Environment, WheelError, build, with_extras, without_extras
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

ROOT = Path(__file__).resolve().parents[3]

log = logging.getLogger("edgeproof")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(
        prog,
        "Build the wheel, look into it, install it in an empty environment elsewhere, and use it there.",
        "exit code 0 when it is whole, 5 when something is missing or too much, 7 when it could not be built or installed",
    )
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep the wheel here")
    made.add_argument("--contents-only", action="store_true", help="build it and look into it, install nothing")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="edgeproof-wheel-") as scratch:
        _check(Path(scratch), given.keep, given.contents_only)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the wheel; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.wheel", arguments)


def _check(scratch: Path, keep: Path | None, contents_only: bool) -> None:
    began = time.monotonic()

    def done(what: str) -> None:
        log.info("%4.0f s  %s", time.monotonic() - began, what)

    wheel = build(ROOT, scratch)
    done(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    wrong = list(faults(wheel, ROOT))
    if wrong:
        raise WheelError(
            f"what {wheel.name} holds", "the product alone, whole: " + "; ".join(wrong[:10]), "see pyproject.toml"
        )
    done("it holds the five packages, six demos, their licences, and nothing else")
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel, keep)
    if contents_only:
        return
    environment = Environment.make(scratch / "environment")
    environment.install(str(wheel))
    without_extras(environment)
    done("installed alone: --help and targets answer, an export names the extra it misses")
    environment.install(TORCH)
    environment.install(f"{wheel}[export,onnx]")
    done("installed with the extras export and onnx")
    families = sorted(path.name for path in (ROOT / DEMOS).iterdir() if path.is_dir())
    with_extras(environment, families)
    done(f"{len(families)} demos planned for every target, one exported, verified and asked")
