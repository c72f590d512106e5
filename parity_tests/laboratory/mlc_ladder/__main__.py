"""``python -m parity_tests.laboratory.mlc_ladder``: run the rungs and print one line each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from parity_tests.laboratory.mlc_ladder import environment
from parity_tests.laboratory.mlc_ladder.results import CannotRun, RungResult, Status
from parity_tests.laboratory.mlc_ladder.rungs import DEMO, RUNGS, Ladder
from runtime_py.errors import EdgeproofError, ExitCode


def main(arguments: list[str] | None = None) -> int:
    """Exit 0 when every rung asked for passed, 5 when one failed, 7 when one could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m parity_tests.laboratory.mlc_ladder", description="Prove an Android library without a phone."
    )
    parser.add_argument("--package", type=Path, help="take the phone library from this package (clang, structure)")
    parser.add_argument("--checkpoint", type=Path, default=DEMO, help="checkpoint the rungs run (the demo)")
    parser.add_argument("--rungs", default=",".join(RUNGS), help="comma-separated, of: " + ", ".join(RUNGS))
    parser.add_argument("--install", action="store_true", help="install what the rungs need first (Debian, as root)")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    names = options.rungs.split(",")
    unknown = sorted(set(names) - set(RUNGS))
    if unknown:
        parser.error(f"no rung is named {', '.join(unknown)}")
    if options.install:
        environment.install(
            lambda text: print(text, file=sys.stderr)  # noqa: T201
        )
    with tempfile.TemporaryDirectory(prefix="mlc-ladder-") as scratch:
        ladder = Ladder(options.checkpoint.resolve(), options.package, Path(scratch))
        results = [climb(ladder, name) for name in RUNGS if name in names]
    if options.json:
        options.json.write_text(json.dumps([result.to_json() for result in results], indent=2) + "\n", encoding="utf-8")
    return exit_code(results)


def climb(ladder: Ladder, name: str) -> RungResult:
    """Run one rung and print its line."""
    try:
        result = RUNGS[name](ladder)
    except CannotRun as reason:
        result = RungResult(name, Status.NOT_RUN, str(reason))
    except EdgeproofError as error:
        result = RungResult(name, Status.FAIL, str(error))
    print(f"{result.rung:10} {result.status:8} {result.detail}", flush=True)  # noqa: T201
    return result


def exit_code(results: list[RungResult]) -> int:
    statuses = {result.status for result in results}
    if Status.FAIL in statuses:
        return ExitCode.PARITY_FAILED
    return ExitCode.ENVIRONMENT if Status.NOT_RUN in statuses else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
