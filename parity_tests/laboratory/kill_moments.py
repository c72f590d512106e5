"""Kill an export at random moments and at chosen places, resume it, and look at what is left: for `kill_rehearsal`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from parity_tests.laboratory.file_hashes import hashes
from parity_tests.laboratory.kill_places import PLACES
from runtime_py.command import console
from runtime_py.errors import ExitCode, MachineError

TERMINATED = 6
STARTED_SECONDS = 2.0
"""From here on Python has started and SIGTERM is the program's own."""

MINE = {"out.old": "thesis.txt", "out.failed": "notes.txt", "out-2.partial": "letter.txt"}
"""Folders of the user's beside the output ``out``, which no export may touch."""


def furnish(place: Path) -> None:
    """Put the user's folders beside an output ``place / "out"``."""
    for folder, name in MINE.items():
        (place / folder).mkdir(parents=True, exist_ok=True)
        (place / folder / name).write_text(f"mine: {name}")


def strangers(place: Path, finished: bool) -> list[str]:
    """What is wrong beside the output: the user's files changed, or something of the export's left over."""
    wrong = [
        f"{folder}/{name} is gone"
        for folder, name in MINE.items()
        if not (place / folder / name).is_file() or (place / folder / name).read_text() != f"mine: {name}"
    ]
    wrong += [f"{folder} has more in it" for folder in MINE if len(list((place / folder).iterdir())) != 1]
    if finished:
        wrong += [f"left over: {path.name}" for path in place.iterdir() if path.name not in {*MINE, "out"}]
    return wrong


def finish(export: Sequence[str], output: Path, expected: dict[str, str]) -> list[str]:
    """Resume to the end; what is wrong then."""
    done = subprocess.run([*export, "-o", str(output), "--resume"], capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"--resume ended with {done.returncode}: {done.stderr[-400:]}"]
    hashed = hashes(output)
    wrong = [
        f"differs: {path}" for path in sorted(expected.keys() | hashed.keys()) if expected.get(path) != hashed.get(path)
    ]
    return wrong + strangers(output.parent, finished=True)


def at_random(
    export: Sequence[str], place: Path, expected: dict[str, str], whole_seconds: float, kills: int, seed: int
) -> list[str]:
    """Kill ``kills`` times after random waits, every third time by SIGTERM; resume between; returns what was wrong."""
    draw, output, wrong, done, finished = Random(seed), place / "out", [], 0, 0
    furnish(place)
    while done < kills:
        soft = done % 3 == 2
        begun = output.with_name("out.partial").exists() or output.exists()
        wait = draw.uniform(STARTED_SECONDS if soft else 0.0, whole_seconds)
        command = [*export, "-o", str(output), *(["--resume"] if begun else [])]
        with subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            try:
                _, said = run.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                _stop(run, soft)
                _, said = run.communicate()
        if run.returncode == 0:
            finished += 1
            wrong += finish(export, output, expected)
            shutil.rmtree(output)
            continue
        done += 1
        if run.returncode != (TERMINATED if soft else -signal.SIGKILL):
            wrong.append(f"{'SIGTERM' if soft else 'SIGKILL'} after {wait:.1f} s gave {run.returncode}: {said[-300:]}")
        wrong += strangers(place, finished=False)
        kept = sum(1 for _ in output.with_name("out.partial").rglob("*")) if output.with_name("out.partial").exists() else 0
        console.out(f"{'SIGTERM' if soft else 'SIGKILL'} {done} of {kills} after {wait:.1f} s: {kept} files kept")
    console.out(f"{kills} kills, {finished} exports came to their end before theirs")
    return wrong + finish(export, output, expected)


def _stop(run: subprocess.Popen[str], soft: bool) -> None:
    """SIGTERM to the export alone, as a service manager sends it; SIGKILL to all its processes."""
    if soft:
        run.send_signal(signal.SIGTERM)
    else:
        os.killpg(run.pid, signal.SIGKILL)


def at_places(flags: Sequence[str], place: Path, expected: dict[str, str], export: Sequence[str]) -> list[str]:
    """Kill once at every place of `PLACES`, then resume to the end; returns what was wrong."""
    wrong = []
    for number, (name, chosen) in enumerate(PLACES.items()):
        output = place / str(number) / "out"
        furnish(output.parent)
        if chosen.replacing:
            run_whole([*export, "-o", str(output)])
        command = [sys.executable, "-m", "parity_tests.laboratory.kill_places", name, *flags, "-o", str(output)]
        done = subprocess.run(
            [*command, *(["--force"] if chosen.replacing else [])], capture_output=True, text=True, check=False
        )
        problems = [] if done.returncode == -signal.SIGKILL else [f"not killed ({done.returncode}): {done.stderr[-300:]}"]
        problems += strangers(output.parent, finished=False)
        problems += finish(export, output, expected)
        console.out(f"killed at '{name}': " + ("resumed to the same bytes" if not problems else "; ".join(problems)))
        wrong += [f"{name}: {problem}" for problem in problems]
        shutil.rmtree(output.parent)
    return wrong


def run_whole(command: Sequence[str]) -> None:
    """Run an export to its end.

    Raises:
        MachineError: it ended with another exit code than 0.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"the export ended with {done.returncode}: {done.stderr[-500:]}", "0", "mend that first")


def measured(export: Sequence[str], output: Path) -> float:
    """Seconds of an export left alone."""
    began = time.monotonic()
    run_whole([*export, "-o", str(output)])
    return time.monotonic() - began


def exit_code(wrong: Sequence[str]) -> int:
    """Print what was wrong; 0 when nothing was."""
    for problem in wrong:
        console.out(f"wrong: {problem}")
    console.out(f"{len(wrong)} things wrong")
    return int(ExitCode.PARITY_FAILED if wrong else ExitCode.OK)
