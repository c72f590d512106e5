"""A package named as ``user/name[@revision]``, brought into the hub's cache: its manifest first, then the rows it lists.

Nothing else of a repository is fetched, so that what lies beside a package there is never on this machine. The files are
links to the cache's ``blobs`` and run as they are (`runtime_py.package.files`).
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.hub.client import (
    REACH_SECONDS,
    as_quiet_as_asked,
    licence_not_accepted,
    network_errors,
    reason,
    require_client,
)
from runtime_py.hub.reference import Reference, reference
from runtime_py.hub.room import bytes_to_fetch, explained_when_full, require_room
from runtime_py.package import MANIFEST, MAX_MANIFEST_BYTES, Package, read

Check = Callable[[Package], object]


def package_folder(path: str | Path, check: Check | None = None) -> str | Path:
    """Where a package is: ``path`` itself, or the folder in the hub's cache that a name of the hub stands for.

    What the cache holds is used when the hub cannot be reached.

    Args:
        path: a folder, or ``user/name[@revision]`` where nothing of this name is on this machine.
        check: called with the manifest alone; what it raises ends the download before anything else is fetched.

    Raises:
        UsageError: no such repository or revision, or it holds no package.
        MachineError: the hub cannot be reached, or its client is not installed.
        DoesNotFitError: the disk of the cache has no room.
    """
    asked = reference(path)
    return path if asked is None else _folder(asked, check, whole=True)


def manifest_folder(path: str | Path) -> str | Path:
    """The same with nothing but the manifest fetched."""
    asked = reference(path)
    return path if asked is None else _folder(asked, None, whole=False)


def _folder(asked: Reference, check: Check | None, whole: bool) -> Path:
    require_client(f"{asked} is no folder here, and cannot be sought on the hub")
    from huggingface_hub import errors

    with as_quiet_as_asked():
        try:
            return _fetched(asked, check, whole)
        except EdgeproofError:
            raise
        except errors.GatedRepoError as error:
            raise licence_not_accepted(asked.repo_id) from error
        except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise UsageError(
                f"{asked} is no folder here, and the hub has no such repository or revision, or hides it from this token",
                "the folder of a package, or USER/NAME[@REVISION] of a repository with one",
                "check the name; for a private repository set HF_TOKEN",
            ) from error
        except network_errors() as error:
            full = explained_when_full(error, asked.repo_id)
            if full is not None:
                raise full from None  # a cause with ENOSPC would be told as one of the package's disk
            return _cached(asked, check, whole, reason(error), error)


def _fetched(asked: Reference, check: Check | None, whole: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(asked.repo_id, revision=asked.revision, files_metadata=True, timeout=REACH_SECONDS)
    files = {file.rfilename: file for file in info.siblings or []}
    if MANIFEST not in files or (files[MANIFEST].size or 0) > MAX_MANIFEST_BYTES:
        raise _no_package(asked, files)
    folder = Path(hf_hub_download(asked.repo_id, MANIFEST, revision=asked.revision)).parent
    package = read(folder)
    if check is not None:
        check(package)
    if whole:
        rows = [row.path for row in package.files]
        require_room(asked.repo_id, bytes_to_fetch(asked.repo_id, [files[name] for name in rows if name in files]))
        patterns = [glob.escape(name) for name in rows]
        snapshot_download(asked.repo_id, revision=folder.name, allow_patterns=patterns)
    return folder


def _cached(asked: Reference, check: Check | None, whole: bool, why: str, cause: BaseException) -> Path:
    """The package from the cache alone."""
    from huggingface_hub import hf_hub_download

    nowhere = MachineError(
        f"{asked} is no folder here, and cannot be downloaded: {why}",
        "the folder of a package, the hub within reach, or a whole copy in its cache",
        "check the path, or try again when the hub can be reached: what has come is kept",
    )
    try:
        folder = Path(hf_hub_download(asked.repo_id, MANIFEST, revision=asked.revision, local_files_only=True)).parent
    except (OSError, ValueError):
        raise nowhere from cause
    package = read(folder)
    if check is not None:
        check(package)
    if whole and not all((folder / row.path).is_file() for row in package.files):
        raise nowhere from cause
    return folder


def _no_package(asked: Reference, files: dict[str, Any]) -> UsageError:
    checkpoint = "config.json" in files
    return UsageError(
        f"{asked} holds no {MANIFEST} of a package" + (": it is a checkpoint" if checkpoint else ""),
        "a repository that `edgeproof push` filled",
        f"export it: python -m export --model {asked.repo_id} --target cpu" if checkpoint else "check the name",
    )
