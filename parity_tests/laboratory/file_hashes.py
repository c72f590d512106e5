"""The files of a folder by their hashes, to compare two packages byte by byte."""

from __future__ import annotations

from pathlib import Path

from export.package.journal import sha256_of


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file by its path, the manifest too."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}
