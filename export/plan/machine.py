"""What this machine has: memory that an export may take, and the versions of the tools it uses."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

from export.backends.registry import backend_named
from runtime_py.memory import container_bytes


def available_memory() -> int:
    """Bytes of memory that can be taken now without swapping, within this container's limit."""
    import psutil

    free, left = int(psutil.virtual_memory().available), container_bytes()
    return free if left is None else min(free, left)


def tool_versions(backends: Iterable[str]) -> dict[str, str]:
    """Name to version of every installed tool that decides the bytes of these backends' files, by name."""
    names = {"numpy", *(tool for backend in backends for tool in backend_named(backend).tools)}
    versions = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))
