"""The command line of the wheel's check."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from parity_tests.laboratory.wheel.contents import DEMOS, faults
from parity_tests.laboratory.wheel.use import TORCH, Environment, WheelError, build, with_extras, without_extras
from runtime_py.errors import EdgeproofError, ExitCode

ROOT = Path(__file__).resolve().parents[3]

log = logging.getLogger("edgeproof")


def parser() -> argparse.ArgumentParser:
    """The flags of ``python -m parity_tests.laboratory.wheel``."""
    made = argparse.ArgumentParser(
        prog="python -m parity_tests.laboratory.wheel",
        description="Build the wheel, look into it, install it in an empty environment elsewhere, and use it there.",
        epilog="exit codes: 0 whole, 5 something is missing or too much, 7 it could not be built or installed",
        allow_abbrev=False,
    )
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep the wheel here")
    made.add_argument("--contents-only", action="store_true", help="build it and look into it, install nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the wheel; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="edgeproof-wheel-") as scratch:
            _check(Path(scratch), given.keep, given.contents_only)
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return ExitCode.OK


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
