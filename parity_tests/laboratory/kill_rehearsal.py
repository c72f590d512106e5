"""Kill an export of any size at several moments, resume it each time, and compare with an export left alone.

    python -m parity_tests.laboratory.kill_rehearsal --model DIR --target cpu -o FOLDER [--undisturbed PACKAGE] [--at
    0.3,0.5,0.7]

    ... --random 30 [--seed 0]    at random moments, every third time by SIGTERM
    ... --placed                  once at every place of kill_places

A moment is a share of the bytes that a run still has to write; its process group gets SIGKILL when it has written that much.
Exit code 0 when every file but the manifest is byte for byte the same, 5 when one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from parity_tests.laboratory import kill_moments
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError

MANIFEST = "manifest.json"
LOOK_SECONDS = 0.05


def journalled_bytes(partial: Path) -> int:
    """Bytes of the finished steps of an unfinished export."""
    try:
        steps = json.loads((partial / "journal.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError):
        return 0
    return sum(int(file["bytes"]) for step in steps.values() for file in step)


def written_bytes(process: int) -> int:
    """Bytes a running process has written so far (Linux: wchar of proc(5))."""
    rows = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("wchar:"))


def files_of(package: Path) -> dict[str, str]:
    """sha256 by path, from the manifest."""
    value = json.loads((package / MANIFEST).read_text(encoding="utf-8"))
    return {row["path"]: row["sha256"] for row in value["files"]}


def run_until(command: Sequence[str], stop_at: int) -> tuple[int, float]:
    """Start an export and kill its process group once it has written ``stop_at`` bytes.

    Returns:
        bytes written at the kill and seconds since the start.

    Raises:
        MachineError: it ended by itself before that.
    """
    began = time.monotonic()
    with subprocess.Popen(command, start_new_session=True) as running:
        while (written := written_bytes(running.pid)) < stop_at:
            if running.poll() is not None:
                raise MachineError(
                    f"the export ended ({running.returncode}) before it had written {stop_at} bytes",
                    "an export still at work",
                    "choose earlier moments with --at",
                )
            time.sleep(LOOK_SECONDS)
        os.killpg(running.pid, signal.SIGKILL)
    return written, time.monotonic() - began


def rehearse(export: Sequence[str], output: Path, undisturbed: Path, moments: Sequence[float]) -> list[str]:
    """Kill and resume ``export`` (without ``-o``) at every moment; returns the paths that differ from ``undisturbed``."""
    command = [*export, "-o", str(output)]
    partial = output.with_name(output.name + ".partial")
    whole = sum(row["bytes"] for row in json.loads((undisturbed / MANIFEST).read_text(encoding="utf-8"))["files"])
    for number, moment in enumerate(moments):
        kept = journalled_bytes(partial)
        written, seconds = run_until([*command, *(["--resume"] if number else [])], int(moment * (whole - kept)))
        if output.exists():
            raise MachineError(f"{output} exists after a kill", "only the partial folder", "report this")
        console.out(
            f"SIGKILL after {seconds:.1f} s: {kept} bytes kept, {written} of {whole - kept} more written; no {output.name}"
        )
    kill_moments.run_whole([*command, "--resume"])
    expected, found_files = files_of(undisturbed), files_of(output)
    return sorted(path for path in expected.keys() | found_files.keys() if expected.get(path) != found_files.get(path))


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Kill an export at several moments, resume it each time, and compare with one left alone.")
    made.add_argument("--model", required=True, help="a checkpoint folder")
    made.add_argument("--target", required=True)
    made.add_argument("--precision", default="int4")
    made.add_argument("--undisturbed", type=Path, help="a package of the same export; made first when not given")
    made.add_argument("--at", default="0.3,0.5,0.7", help="shares of what is left to write (default 0.3,0.5,0.7)")
    made.add_argument("--weights", help="as of the export; demo for a family's demo weights")
    made.add_argument("--random", type=int, default=0, metavar="N", help="kill N times at random moments instead")
    made.add_argument("--placed", action="store_true", help="kill once at every place of kill_places instead")
    flags.seed(made, "equal seeds choose equal moments")
    made.add_argument("-o", "--output", type=Path, required=True)
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    moments = [float(part) for part in given.at.split(",")]
    if given.output.exists():
        raise UsageError(f"{given.output} exists", "a new folder", "choose another -o")
    export = [sys.executable, "-m", "export", "--model", given.model, "--target", given.target]
    export += ["--precision", given.precision, "--skip-verify", "--without-tokenizer", "-q"]
    if given.weights:
        export += ["--weights", given.weights]
    if given.random or given.placed:
        return _at_moments(export, given)
    alone = given.undisturbed or given.output.with_name(given.output.name + "-undisturbed")
    if given.undisturbed is None:
        kill_moments.run_whole([*export, "-o", str(alone)])
    different = rehearse(export, given.output, alone, moments)
    for path in different:
        console.out(f"differs: {path}")
    console.out(f"{len(files_of(alone))} files, {len(different)} differ from the undisturbed package")
    return int(ExitCode.PARITY_FAILED if different else ExitCode.OK)


def _at_moments(export: list[str], given: argparse.Namespace) -> int:
    """Random moments and chosen places, in the new folder ``--output``."""
    given.output.mkdir(parents=True)
    alone = given.output / "undisturbed" / "out"
    seconds = kill_moments.measured(export, alone)
    expected = kill_moments.hashes(alone)
    console.out(f"undisturbed: {len(expected)} files in {seconds:.1f} s")
    wrong: list[str] = []
    if given.placed:
        wrong += kill_moments.at_places(export[3:], given.output / "placed", expected, export)
    if given.random:
        place = given.output / "random"
        wrong += kill_moments.at_random(export, place, expected, seconds, given.random, flags.seed_number(given.seed))
    return kill_moments.exit_code(wrong)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.kill_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
