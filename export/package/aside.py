"""Files written under another name first, so that nobody ever finds half of one under its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".tmp"


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """The name to write ``path`` under: the file is on the disk before it gets its own, and goes if anything goes wrong."""
    aside = path.with_name(path.name + SUFFIX)
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_in_place(path: Path) -> Iterator[Path]:
    """As `written_aside` for a place that a user names: what a link leads to, a pipe and a device (``/dev/stdout``) are
    written as they are, for a new file would take their place.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        yield path
        return
    with written_aside(path) as aside:
        yield aside


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system allows it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
