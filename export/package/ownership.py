"""Which folders an export may empty: those that carry its own journal or manifest, and no others.

A name such as ``out.old`` may be anybody's. A folder is ours when it, and no link to it, holds a journal or a manifest of
the form that exports and calibrations write; an empty folder is nobody's and may be used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.package.journal import NAME, read_journal
from runtime_py.errors import UsageError
from runtime_py.files.json_file import read_json
from runtime_py.package import MANIFEST, MAX_MANIFEST_BYTES


def stored_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of a finished package or calibration; None for any other folder, and for a link to one."""
    if folder.is_symlink() or not (folder / MANIFEST).is_file():
        return None
    try:
        value = read_json(folder / MANIFEST, MAX_MANIFEST_BYTES, UsageError)
    except UsageError:
        return None
    ours = isinstance(value, dict) and isinstance(value.get("schema"), int) and isinstance(value.get("files"), list)
    return value if ours and ("edgeproof" in value or value.get("kind") == "calibration") else None


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is what an export or calibration that was cut off left: its journal is in it or beside it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    aside = folder.with_name(f"{folder.name}.{NAME}")
    if any(read_journal(path) is not None for path in (folder / NAME, aside)):
        return True
    return stored_manifest(folder) is not None or not [path for path in folder.iterdir() if path.name != f"{NAME}.tmp"]


def remove_unfinished(folder: Path) -> None:
    """Remove what a cut-off export left.

    Raises:
        UsageError: the folder is somebody else's.
    """
    require_unfinished(folder)
    shutil.rmtree(folder)


def require_unfinished(folder: Path) -> None:
    """Raise UsageError unless a folder is one that an export left unfinished."""
    if not is_unfinished(folder):
        raise UsageError(
            f"{folder} exists and is no unfinished export",
            "no such folder, or one with the journal of an export",
            "move it away, or choose another -o",
        )


def remove_package(folder: Path) -> None:
    """Remove a finished package or calibration; anything else stays."""
    if stored_manifest(folder) is not None:
        shutil.rmtree(folder)


def free_name(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3`` ... that nothing has."""
    number, candidate = 1, path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
