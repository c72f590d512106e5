"""How an export that does not run to its end says so: stopped by a person, or out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.package import disk
from runtime_py.errors import InterruptedExportError, MachineError


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """Turn Ctrl-C (and what the command line raises for SIGTERM) into the error that names --resume."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        partial = disk.partial_of(output)
        where = f"what is finished is kept in {partial}" if partial.exists() else "nothing was written yet"
        raise InterruptedExportError(
            "the export was stopped", f"it to run to its end; {where}", "run the same command again with --resume"
        ) from interrupt


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn Python's error into the one that names --resume."""
    try:
        yield
    except MemoryError as error:
        raise MachineError(
            "this machine ran out of memory", "as much as the plan says (--dry-run)", "free some and run with --resume"
        ) from error
