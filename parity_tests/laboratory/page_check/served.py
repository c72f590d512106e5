"""A server of a package in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import MachineError

ADDRESS = re.compile(r"serving (?P<name>.+) at (?P<url>http://\S+)/v1 with")


@dataclass(frozen=True)
class Served:
    """Where it is, how it calls its model, and its process."""

    url: str
    name: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def served(package: Path, flags: Sequence[str] = ()) -> Iterator[Served]:
    """A server at a free port of this machine, which ends with the context.

    Raises:
        MachineError: it does not start.
    """
    command = [sys.executable, "-m", "runtime_py", "serve", "--package", str(package), "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if match := ADDRESS.search(line):
                break
        else:
            raise MachineError(f"the server did not start: {said.strip()}", "a server", "start it by hand")
        try:
            yield Served(match["url"], match["name"], process)
        finally:
            process.terminate()
            process.communicate()
