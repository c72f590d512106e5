"""The folder an export writes to: can it be written, has it room, and what an error of the system means to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime_py.errors import DoesNotFitError, EdgeproofError, MachineError, UsageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def partial_of(output: Path) -> Path:
    """Where a package is assembled before it gets its name."""
    return output.with_name(output.name + ".partial")


def failed_of(output: Path) -> Path:
    """Where a package that failed its check is kept."""
    return output.with_name(output.name + ".failed")


def old_of(output: Path) -> Path:
    """Where ``--force`` keeps the package it replaces until the new one is whole."""
    return output.with_name(output.name + ".old")


def check_output(output: Path, force: bool, resume: bool) -> None:
    """Refuse, before any work, an output that cannot become a package.

    Raises:
        UsageError: it exists, or an unfinished export of it does, or a parent is no folder.
        MachineError: it cannot be written.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"-o {output} is a file or a link", "a folder that does not exist yet", "choose another name")
    if output.exists() and not force and any(output.iterdir()):
        raise UsageError(
            f"-o {output} exists already",
            "a folder that does not exist yet",
            "choose another name, or replace it with --force (the old package stays until the new one is whole)",
        )
    if output.exists() and not (output / "manifest.json").is_file() and any(output.iterdir()):
        raise UsageError(
            f"-o {output} exists and is no package, so --force will not replace it",
            "a folder with a manifest.json, or a name that does not exist yet",
            "choose another name",
        )
    partial = partial_of(output)
    if partial.exists() and not (resume or force):
        raise UsageError(
            f"{partial} is there from an export that did not finish",
            "no unfinished export under this name",
            "go on with it by --resume, or start over with --force",
        )
    parent = existing_parent(output)
    if not parent.is_dir():
        raise UsageError(f"-o {output}: {parent} is no folder", "a path whose parents are folders", "choose another path")
    with explained(output), tempfile.TemporaryFile(dir=parent):
        pass


def existing_parent(path: Path) -> Path:
    """The nearest parent of ``path`` that exists."""
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path(path.absolute().anchor)


def check_room(output: Path, needed: int) -> None:
    """Raise DoesNotFitError unless the disk of ``output`` has ``needed`` bytes free."""
    free = free_bytes(output)
    if needed > free:
        raise DoesNotFitError(
            f"the package needs {needed / 1e9:.2f} GB on the disk of {output}",
            f"at most the {free / 1e9:.2f} GB that are free there",
            "free some space, choose another disk with -o, or a smaller --precision",
        )


def free_bytes(path: Path) -> int:
    """Bytes free for us on the disk where ``path`` lies or will lie."""
    return shutil.disk_usage(path if path.exists() else existing_parent(path)).free


@contextlib.contextmanager
def explained(output: Path) -> Iterator[None]:
    """Turn an OSError of writing under ``output`` into a MachineError that says what to do.

    An error that a writer made of an OSError is explained the same way, so that every step ends in the same words.
    """
    try:
        yield
    except OSError as error:
        raise _meaning(error, str(error.filename or output), output) from error
    except EdgeproofError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in FULL | REFUSED:
            raise _meaning(cause, str(cause.filename or error.what), output) from cause
        raise


def _meaning(error: OSError, name: str, output: Path) -> MachineError:
    if error.errno in FULL:
        return MachineError(
            f"the disk is full: {name} could not be written",
            f"room for the package (the disk of {output} has {free_bytes(output) / 1e6:.1f} MB free)",
            "free some space and run the same command with --resume, or choose another disk with -o",
        )
    if error.errno in REFUSED:
        return MachineError(
            f"{name} cannot be written: {os.strerror(error.errno or 0)}",
            f"permission to write below {existing_parent(output)}",
            "choose another folder with -o, or change the permissions",
        )
    return MachineError(
        f"reading or writing {name} failed: {error.strerror or error}",
        "a disk that works",
        "look at the disk, then run the same command with --resume",
    )


def promote(partial: Path, output: Path) -> None:
    """Give a whole package its name; an older package under that name is kept until then and removed afterwards."""
    old = old_of(output)
    if output.exists():
        if old.exists():
            shutil.rmtree(old)
        output.rename(old)
    partial.rename(output)
    if old.exists():
        shutil.rmtree(old)
