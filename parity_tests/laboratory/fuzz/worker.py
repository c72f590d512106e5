"""Reads many strange files of one subject in one process, and says what became of each.

    python -m parity_tests.laboratory.fuzz.worker SUBJECT SEED FIRST COUNT

Input number N of a seed is always the same file. A line of JSON on standard output begins each input (so that a process that
dies says at which), and a last one counts. Time is the processor's, so that a busy machine hangs nothing. A call into the
system that no reader has business with (a process started, a program run, a connection made) is counted as foreign code.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from parity_tests.laboratory.fuzz.package_subjects import SUBJECTS
from parity_tests.laboratory.fuzz.subjects import Different, Subject
from runtime_py.errors import EdgeproofError, InternalError

HANG_SECONDS = 5.0
WARM_UP = 5
"""Inputs after which memory is counted: libraries are loaded by then."""

FOREIGN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.getaddrinfo",
)  # fmt: skip
CANARY = "PWNED"
MOST_LINES = 40
"""Of one traceback that is kept."""


@dataclass
class Findings:
    """What became of many inputs.

    Attributes:
        grown: bytes by which the peak of resident memory grew after the warm-up.
        examples: number of an input, and what went wrong with it.
    """

    refused: int = 0
    accepted: int = 0
    tracebacks: int = 0
    different: int = 0
    hangs: int = 0
    foreign: int = 0
    crashes: int = 0
    grown: int = 0
    slowest: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[int, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.refused + self.accepted + self.tracebacks + self.different + self.crashes

    @property
    def faults(self) -> int:
        return self.tracebacks + self.different + self.hangs + self.foreign + self.crashes

    def to_json(self) -> dict[str, Any]:
        """Every field by its name; `dataclasses.asdict` makes a counter of pairs of a counter (Python 3.11)."""
        return {**asdict(replace(self, kinds=Counter())), "kinds": dict(self.kinds)}

    def add(self, other: Findings) -> None:
        """Count another process's findings too."""
        for name in ("refused", "accepted", "tracebacks", "different", "hangs", "foreign", "crashes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.grown, self.slowest = max(self.grown, other.grown), max(self.slowest, other.slowest)
        self.kinds += other.kinds
        self.examples += other.examples


class Watch:
    """Counts calls into the system that no reader makes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.on = False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event in FOREIGN:
            self.calls.append(f"{event} {arguments!r:.100}")


@cache
def the_watch() -> Watch:
    """The one of this process; a hook cannot be taken off again."""
    return Watch()


def one(subject: Subject, folder: Path, draw: Random, number: int, watch: Watch, findings: Findings) -> None:
    """Read one strange file and count what became of it."""
    name = subject.place(folder, draw)
    forget_peak()
    began = time.process_time()
    watch.calls.clear()
    watch.on = True
    problem = ""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            subject.read(folder, name)
        findings.accepted += 1
    except InternalError as error:
        findings.tracebacks += 1
        problem = "".join(traceback.format_exception(error))
    except EdgeproofError as error:
        findings.kinds[type(error).__name__] += 1
        if all((error.what, error.expected, error.next_step)):
            findings.refused += 1
        else:
            findings.tracebacks += 1
            problem = f"an error without its three parts: {error}"
    except Different as error:
        findings.different += 1
        problem = f"read otherwise: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        findings.tracebacks += 1
        problem = "".join(traceback.format_exception(error))
    finally:
        watch.on = False
    seconds = time.process_time() - began
    findings.slowest = max(findings.slowest, seconds)
    if seconds > HANG_SECONDS:
        findings.hangs += 1
        problem += f" {seconds:.1f} s"
    if watch.calls or (folder / CANARY).exists() or Path(CANARY).exists():
        findings.foreign += 1
        problem += f" foreign code: {watch.calls}"
    if problem:
        findings.examples.append((number, "\n".join(problem.strip().splitlines()[-MOST_LINES:])))


def run(subject: Subject, seed: int, numbers: range, folder: Path, told: bool = False) -> Findings:
    """Read the inputs of these numbers; ``told`` prints each number before it is read."""
    findings, watch, before = Findings(), the_watch(), 0
    subject.seeds()
    for count, number in enumerate(numbers):
        if told:
            sys.stdout.write(json.dumps({"input": number}) + "\n")
            sys.stdout.flush()
        if count == WARM_UP:
            before = peak_bytes()
        one(subject, folder / "case", Random(f"{subject.name} {seed} {number}"), number, watch, findings)
        if count >= WARM_UP:
            findings.grown = max(findings.grown, peak_bytes() - before)
    return findings


def forget_peak() -> None:
    """Begin the peak anew: making a strange file may take more memory than any reading of it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Highest resident memory of this process since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No messages of libraries, and a folder of its own to work in."""
    logging.disable(logging.CRITICAL)
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)


def main() -> None:
    """Read COUNT inputs from FIRST on, and print the findings as the last line."""
    name, seed, first, count = sys.argv[1], *map(int, sys.argv[2:5])
    with quiet():
        findings = run(SUBJECTS[name], seed, range(first, first + count), Path.cwd(), told=True)
    sys.stdout.write(json.dumps({"findings": findings.to_json()}) + "\n")


if __name__ == "__main__":
    main()
