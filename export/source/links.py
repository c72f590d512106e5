"""Where a file of a checkpoint may really lie: in the checkpoint's folder, in the model hub's cache, or beside a model.

One rule for every file, weights and side files alike. A link is followed

1. to a file inside the checkpoint's folder (which may be a link itself);
2. from a snapshot of the hub's cache to the ``blobs`` of that repository;
3. out of the folder, as people do who keep models on another disk: to a file of the same name in a folder that holds a
   model, that is a config.json or weights. So a link that is called LICENSE or tokenizer.json and leads to somebody's key or
   notes is not, and what is copied into a package comes from a model.

The hub's client keeps files as ``models--NAME/blobs/<hash>`` and links ``models--NAME/snapshots/<revision>/<file>`` to them
(huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md). A checkpoint of several repositories is a folder of
links ``edgeproof-joined/NAME/<hash>`` in the cache (`export.source.hub`), and leads to those repositories.
"""

from __future__ import annotations

from pathlib import Path

from runtime_py.errors import CheckpointError

JOINED = "edgeproof-joined"
"""Folder of the hub's cache for checkpoints of several repositories."""

REPOSITORY = "models--"
"""How the names of the cache's folders begin."""


MODEL_FILES = ("config.json", "*.safetensors", "*.bin")
"""Of which a folder holds one when it holds a model."""


def require_allowed(path: Path, home: Path) -> None:
    """Raise CheckpointError unless `may_be_read`."""
    if not may_be_read(path, home):
        raise CheckpointError(
            f"{path} is a link that leaves the checkpoint",
            f"a file in {home}, a link of the hub's cache, or one to a file of the same name beside a model",
            "link to the file under its own name, copy it into the checkpoint's folder, or remove the link",
        )


def may_be_read(path: Path, home: Path) -> bool:
    """Whether a file of the checkpoint ``home`` lies where one may lie, links followed; see the rule above."""
    if leads_inside(path, home):
        return True
    try:
        real = path.resolve()
        if not real.is_file():
            return False
        if path.is_symlink():
            following = path.parent / path.readlink()
            if following.name == path.name and following.parent.parent.name == "snapshots":
                return leads_inside(following, following.parent)
        return real.name == path.name and any(any(real.parent.glob(pattern)) for pattern in MODEL_FILES)
    except (OSError, RuntimeError, ValueError):
        return False


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
