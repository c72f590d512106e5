"""A schema is tried in a process of its own before a server takes it, and refused when that takes too long, or too much
memory.

What llguidance works out of a schema before the first token is bounded by the schema alone: ``{"type": "integer",
"multipleOf": 1234567}`` takes it 38 seconds and 0.7 GB, forty patterns that must all match take minutes, and nothing ends it
from within. The steps behind that are bounded by llguidance itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from runtime_py.errors import MachineError
from runtime_py.serving import schema_process

WALL_SECONDS = 30.0
"""For the whole process, on a machine that has no time for it, or no clock of processor seconds."""

KEPT = 64
"""Schemas whose outcome is remembered: a client sends the same one again and again."""

_one = threading.Lock()
"""One at a time, however many ask: they take memory, and the processor from the answers."""


@lru_cache(KEPT)
def can_be_worked_out(schema: str) -> bool:
    """Whether llguidance comes to an end with a schema, JSON as text, within `runtime_py.serving.schema_process`'s bounds.
    True for what is no schema: that is found soon.

    Raises:
        MachineError: no such process can be started here.
    """
    command = [sys.executable, "-P", str(Path(schema_process.__file__))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with _one:
            done = subprocess.run(
                command, input=schema, capture_output=True, encoding="utf-8", errors="replace", env=environment,
                timeout=WALL_SECONDS, start_new_session=True, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    except OSError as error:
        raise _no_process(str(error)) from error
    said = done.stdout.split()
    if schema_process.BEGUN not in said:
        raise _no_process(done.stderr.strip().rpartition("\n")[2])
    return schema_process.ENDED in said


def _no_process(why: str) -> MachineError:
    return MachineError(
        f"a process that tries JSON schemas cannot be started: {why}",
        f"a Python that has llguidance at {sys.executable!r}",
        "start the server from the environment that edgeproof[serve] is installed in",
    )
