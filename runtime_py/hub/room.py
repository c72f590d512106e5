"""Room on a disk, and in the hub's cache before a download starts."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.errors import DoesNotFitError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No room, quota used up, more than a file may have (FAT: 4 GB)."""

ADVICE = "free some space there, or set HF_HUB_CACHE to a folder on another disk"


def cache_folder() -> Path:
    """The hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def bytes_to_fetch(repo_id: str, files: Iterable[RepoSibling]) -> int:
    """Bytes of a repository's files that the cache lacks; what it has of a file, whole or cut off, does not count.

    The cache keeps a file as ``models--USER--NAME/blobs/HASH``, and the beginning of one as ``HASH.*.incomplete``
    (huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md).

    Args:
        files: with sizes and hashes (``files_metadata``); a file of unknown size counts as nothing.
    """
    blobs = cache_folder() / f"models--{repo_id.replace('/', '--')}" / "blobs"
    held = {path.name: path.stat().st_size for path in blobs.iterdir()} if blobs.is_dir() else {}
    missing = 0
    for file in files:
        name = file.lfs.sha256 if file.lfs is not None else file.blob_id
        have = max((size for kept, size in held.items() if name and kept.startswith(name)), default=0)
        missing += max(0, (file.size or 0) - have)
    return missing


def require_room(repo_id: str, needed: int) -> None:
    """Raise DoesNotFitError unless the disk of the hub's cache has so many bytes free."""
    cache = cache_folder()
    free = free_bytes(cache)
    if needed > free:
        raise DoesNotFitError(
            f"{repo_id} needs {needed / 1e9:,.2f} GB more in the hub's cache ({cache})",
            f"at most the {free / 1e9:,.2f} GB that are free on its disk",
            ADVICE,
        )


def existing_parent(path: Path) -> Path:
    """The nearest parent of ``path`` that exists."""
    return next((parent for parent in path.absolute().parents if parent.exists()), Path(path.absolute().anchor))


def free_bytes(path: Path) -> int:
    """Bytes free for us on the disk where ``path`` lies or will lie."""
    return shutil.disk_usage(path if path.exists() else existing_parent(path)).free


def explained_when_full(error: BaseException, repo_id: str) -> DoesNotFitError | None:
    """The error of a disk that filled up while a download was under way; None for any other."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    return DoesNotFitError(
        f"the disk of the hub's cache ({cache_folder()}) filled up while {repo_id} was downloaded",
        "room for the whole download",
        f"{ADVICE}; then run the same command again: what has come is kept",
    )
