"""The files of a package on disk: which may be opened, where a link may lead, and which others may lie beside them.

A path that the manifest names is opened only if it is a row of ``files``, lies inside the package, and is a regular file.
A link is followed if it leads to a regular file inside the package, or, for a package in a cache of the model hub, to one
in the cache's ``blobs`` (huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md: ``snapshots/<revision>/<file>``
links to ``blobs/<hash>``). Every other link, every pipe and every device is refused. The rule is the same for all files.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runtime_py.errors import PackageError

DOWNLOADED_BESIDE = frozenset({".gitattributes", ".gitignore", "README.md", ".cache", ".git", ".huggingface"})
"""What downloading a package from a model hub adds at its top. Never opened; it need not be a row of ``files``."""

SYSTEMS_OWN = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that macOS and Windows put into any folder that is looked at; as above."""

HASHED_AT_ONCE = 4
"""Files read side by side when contents are compared: a processor's core hashes slower than a disk of today reads."""

NEXT = "copy the package again, or export it again"


def listed_file(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """A file of a package, for opening; its content is `runtime_py.package.verify`'s business.

    Args:
        name: relative to ``folder``, as a row of ``files`` has it.

    Raises:
        PackageError: it is no row, is missing, or is no regular file inside the package.
    """
    if name not in listed(manifest):
        raise PackageError(
            f"{folder} names the file {name!r}, which is no row of its manifest's files",
            "every file that is used to be hashed in the manifest",
            "do not use this package; its manifest was altered",
        )
    wrong = problem(folder, name)
    if wrong:
        raise PackageError(f"{folder}: {wrong}", "a regular file inside the package", NEXT)
    return folder / name


def listed_folder(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """A folder of a package that holds rows of ``files``, for a library that opens its files by itself.

    Raises:
        PackageError: no row lies in it, or one of those that do is no regular file inside the package.
    """
    inside = [row for row in listed(manifest) if row.startswith(f"{name}/")]
    if not inside:
        raise PackageError(
            f"{folder} names the folder {name!r}, which holds no row of its manifest's files",
            "every file that is used to be hashed in the manifest",
            "do not use this package; its manifest was altered",
        )
    for row in inside:
        listed_file(folder, manifest, row)
    return folder / name


def listed(manifest: Mapping[str, Any]) -> set[str]:
    """Paths of all rows of ``files``."""
    return {row["path"] for row in manifest["files"]}


def problem(folder: Path, name: str) -> str:
    """What keeps a path from being a file of the package, in a few words; empty when nothing does."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links that lead to one another
        linked = os.path.islink(path)  # noqa: PTH114  # Path.is_symlink raises for a name that is too long
        return f"link that leads nowhere: {name}" if linked else f"missing: {name}"
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parents[1] / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        return f"link that leaves the package: {name}"
    return "" if stat.S_ISREG(status.st_mode) else f"no regular file: {name}"


def differences(folder: Path, manifest: Mapping[str, Any], beside: set[str], deep: bool = True) -> list[str]:
    """One line for every file that is not what the manifest says; content is read only with ``deep``.

    Args:
        beside: paths that may be there without being rows: the manifest's own.
    """
    with ThreadPoolExecutor(HASHED_AT_ONCE, "hashing") as hashing:  # hashlib lets other threads run meanwhile
        wrong = [line for line in hashing.map(lambda row: _difference(folder, row, deep), manifest["files"]) if line]
    known = listed(manifest) | beside
    return wrong + [f"extra: {name}" for name in sorted(_present(folder)) if name not in known]


def _difference(folder: Path, row: Mapping[str, Any], deep: bool) -> str:
    name = row["path"]
    fault = problem(folder, name)
    if fault:
        return fault
    size = (folder / name).stat().st_size
    if size != row["bytes"]:
        return f"size: {name} has {size} bytes, not {row['bytes']}"
    if deep and (digest := sha256(folder / name)) != row["sha256"]:
        return f"content: {name} has SHA-256 {digest[:12]}..., not {row['sha256'][:12]}..."
    return ""


def _present(folder: Path) -> Iterator[str]:
    """Everything in a package but plain folders and what downloading and systems add; links are not followed."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        beside = DOWNLOADED_BESIDE if here == folder else frozenset()
        folders[:] = [name for name in folders if name not in beside]
        for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
            if name not in beside and name not in SYSTEMS_OWN:
                yield (here / name).relative_to(folder).as_posix()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row of ``files`` for everything in a folder, by path: what a manifest of it would list."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths
    ]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read a chunk at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
