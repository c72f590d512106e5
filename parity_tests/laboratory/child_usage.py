"""What a program took: its seconds of processor and its peak, with those of the programs that it started and waited for.

A program's own ru_maxrss begins at the resident memory of the process that starts it (Linux, fs/exec.c: exec_mmap keeps the
peak of the memory that is left), so a small interpreter stands between: what it asks of its children begins at its own
10 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BETWEEN = (
    "import json, resource, subprocess, sys;"
    "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode;"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    "print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))"
)
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of a unit of ru_maxrss (getrusage(2))."""


@dataclass(frozen=True)
class Usage:
    """What came of it.

    Attributes:
        code: its exit code; minus a signal's number where one ended it.
        seconds: by the clock.
        processor: seconds of it, of all programs.
        peak: resident bytes of the largest of them.
        errors: its stderr.
    """

    code: int
    seconds: float
    processor: float
    peak: int
    errors: str


def usage_of(command: Sequence[str], variables: Mapping[str, str] | None = None) -> Usage:
    """Run a program to its end; what it writes to stdout is dropped.

    Args:
        variables: its environment; None for this process's own.

    Raises:
        subprocess.CalledProcessError: it cannot be started.
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-S", "-c", BETWEEN, *command], env=variables, capture_output=True, text=True, check=True
    )
    code, processor, peak = json.loads(done.stdout)
    return Usage(code, time.monotonic() - began, processor, peak * UNIT, done.stderr)
