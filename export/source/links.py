"""Where a file of a checkpoint may really lie: inside the checkpoint's folder, or inside the model hub's cache it is in.

The hub's client keeps files as ``models--NAME/blobs/<hash>`` and links ``models--NAME/snapshots/<revision>/<file>`` to them
(huggingface/huggingface_hub, docs/source/en/guides/manage-cache.md). A checkpoint of several repositories is a folder of
links in the cache (`export.source.hub`), and may lead to any of them: all that the cache holds was downloaded for everybody.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def leads_inside(path: Path, home: Path) -> bool:
    """Whether a path leads, links followed, into the folder ``home`` or into the hub's cache that ``home`` is in."""
    try:
        real, folder = path.resolve(), home.resolve()
    except (OSError, RuntimeError, ValueError):  # links that lead to one another, or a name that is none
        return False
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parents[1] / "blobs")
    cache = hub_cache()
    if folder.is_relative_to(cache):
        allowed.append(cache)
    return any(real.is_relative_to(place) for place in allowed)


def hub_cache() -> Path:
    """The cache of the model hub, found as huggingface/huggingface_hub does (src/huggingface_hub/constants.py)."""
    for name in CACHE_VARIABLES:
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(cache) / "huggingface"
    return (Path(home).expanduser() / "hub").resolve()
