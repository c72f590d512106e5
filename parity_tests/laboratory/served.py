"""A server of a package in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_tests.laboratory.process_end import end
from runtime_py.errors import MachineError

ADDRESS = re.compile(r"serving (?P<name>.+) at (?P<url>http://\S+)/v1 with")
SECONDS = 120.0
"""For it to start."""


@dataclass(frozen=True)
class Served:
    """Where it is, how it calls its model, its process, and the file of what it says."""

    url: str
    name: str
    process: subprocess.Popen[str]
    log: Path

    def said(self) -> str:
        """All that it said on stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def served(package: Path, flags: Sequence[str] = ()) -> Iterator[Served]:
    """A server at a free port of this machine, which ends with the context.

    Raises:
        MachineError: it does not start.
    """
    command = [sys.executable, "-m", "runtime_py", "serve", "--package", str(package), "--port", "0", *flags]
    with tempfile.TemporaryDirectory(prefix="edgeproof-served-") as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as stream, subprocess.Popen(command, stderr=stream, text=True) as process:
            try:
                match = _started(process, log)
                yield Served(match["url"], match["name"], process, log)
            finally:
                end(process)


def _started(process: subprocess.Popen[str], log: Path) -> re.Match[str]:
    ends = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < ends:
        if match := ADDRESS.search(log.read_text(encoding="utf-8", errors="replace")):
            return match
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    raise MachineError(f"the server did not start: {said}", "a server", "start it by hand")
