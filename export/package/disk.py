"""The folder an export writes to: can it be written, has it room, and what an error of the system means to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from export.package.journal import Journal
from export.package.lock import lock_of
from export.package.ownership import free_name, remove_package, require_unfinished, stored_manifest
from runtime_py.errors import EdgeproofError, MachineError, UsageError, require_utf8
from runtime_py.files.json_file import shortened
from runtime_py.hub.room import FULL, existing_parent, free_bytes

REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def partial_of(output: Path) -> Path:
    """Where a package is assembled before it gets its name."""
    return output.with_name(output.name + ".partial")


def failed_of(output: Path) -> Path:
    """Where a package that failed its check is kept, unless the name is somebody else's."""
    return output.with_name(output.name + ".failed")


def old_of(output: Path) -> Path:
    """Where ``--force`` keeps the package it replaces until the new one is whole, unless something has the name."""
    return output.with_name(output.name + ".old")


def check_place(output: Path) -> None:
    """Refuse an output that no package can have as its folder.

    Raises:
        UsageError: it has no name of its own or one that cannot be kept, is a file or a link, or a parent is no folder.
        MachineError: it cannot be written.
    """
    require_name(output)
    require_utf8(output, "-o")
    with explained(output):
        _check_parents(output)


def require_name(output: Path) -> None:
    """Refuse a folder without a name of its own: what is written is made beside it, under its name and an ending.

    Raises:
        UsageError: it is ``.``, ``..`` or ``/``.
    """
    if output.name in ("", ".."):
        raise UsageError(
            f"-o {str(output)!r} names a folder that has no name of its own there",
            "a folder that is made",
            f"give it a name: -o {output / 'NAME'}",
        )


def _check_parents(output: Path) -> None:
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"-o {output} is a file or a link", "a folder that does not exist yet", "choose another name")
    parent = existing_parent(output)
    if not parent.is_dir():
        raise UsageError(f"-o {output}: {parent} is no folder", "a path whose parents are folders", "choose another path")
    with tempfile.TemporaryFile(dir=parent):
        pass
    with contextlib.suppress(FileNotFoundError):
        lock_of(output).lstat()  # the longest name that an export makes beside its output


def check_output(output: Path, force: bool, resume: bool) -> None:
    """Refuse, before any work, an output that cannot become a package.

    With ``resume`` a finished package may be there: whether it is the one that was asked for is the caller's to see.

    Raises:
        UsageError: it exists, or an unfinished export of it does, or a folder in the way is somebody else's.
        UsageError, MachineError: see `check_place`.
    """
    check_place(output)
    partial = partial_of(output)
    filled = output.exists() and any(output.iterdir())
    if filled and stored_manifest(output) is None:
        raise UsageError(
            f"-o {output} exists and is no package, so it will not be replaced",
            "a folder with a manifest.json of ours, or a name that does not exist yet",
            "choose another name",
        )
    if filled and not force and (not resume or os.path.lexists(partial)):
        raise exists_already(output)
    if os.path.lexists(partial):
        require_unfinished(partial)
        if not (resume or force):
            raise UsageError(
                f"{partial} is there from an export that did not finish",
                "no unfinished export under this name",
                "go on with it by --resume, or start over with --force",
            )


def exists_already(output: Path) -> UsageError:
    """The error of an output that is there and was not asked to be replaced."""
    return UsageError(
        f"-o {output} exists already",
        "a folder that does not exist yet",
        "choose another name, or replace it with --force (the old package stays until the new one is whole)",
    )


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


def _meaning(error: OSError, name: str, output: Path) -> EdgeproofError:
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(
            f"-o {shortened(str(output), 300)} is longer than a path may be there",
            "a name to which an ending of a few letters can be added",
            "choose a shorter one with -o",
        )
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


def promote(partial: Path, output: Path, journal: Journal) -> None:
    """Give a whole package its name, and remove the journal: the export is over.

    An older package under that name gets another until then, which the journal remembers, and is removed afterwards.
    """
    if output.exists() and not any(output.iterdir()):
        output.rmdir()
    if output.exists():
        old = free_name(old_of(output))
        journal.remember_replaced(old)
        output.rename(old)
    partial.rename(output)
    clean_up(output, journal)


def clean_up(output: Path, journal: Journal) -> None:
    """Remove what a finished export of ``output`` leaves when it is killed at its very end: the package that it replaced."""
    if journal.replaced is not None and output.is_dir():
        remove_package(output.with_name(journal.replaced))
    journal.remove()


def keep_failed(partial: Path, output: Path, journal: Journal) -> Path:
    """Keep a package that failed its check beside the name it did not get; an earlier one that failed makes room."""
    failed = failed_of(output)
    earlier = stored_manifest(failed)
    if earlier is not None and earlier.get("verification", {}).get("verdict") == "fail":
        shutil.rmtree(failed)
    failed = free_name(failed)
    partial.rename(failed)
    journal.remove()
    return failed
