"""Where a file of a checkpoint may really lie: inside the checkpoint's folder, or where the model hub's cache keeps files.

The hub's client keeps files as ``models--NAME/blobs/<hash>`` and links ``models--NAME/snapshots/<revision>/<file>`` to them
(huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md). A checkpoint of several repositories is a folder of
links ``edgeproof-joined/NAME/<hash>`` in the cache (`export.source.hub`), and leads to those repositories.
"""

from __future__ import annotations

from pathlib import Path

JOINED = "edgeproof-joined"
"""Folder of the hub's cache for checkpoints of several repositories."""

REPOSITORY = "models--"
"""How the names of the cache's folders begin."""


def leads_inside(path: Path, home: Path) -> bool:
    """Whether a path leads, links followed, into the folder ``home`` or to what the hub's cache that it is in keeps."""
    try:
        real, folder = path.resolve(), home.resolve()
    except (OSError, RuntimeError, ValueError):  # links that lead to one another, or a name that is none
        return False
    if real.is_relative_to(folder):
        return True
    if folder.parent.name == "snapshots":
        return real.is_relative_to(folder.parents[1] / "blobs")
    if len(folder.parents) > 2 and folder.parents[1].name == JOINED:
        cache = folder.parents[2]
        return real.is_relative_to(cache) and real.relative_to(cache).parts[0].startswith(REPOSITORY)
    return False
