"""What this machine has: memory that an export may take, and the versions of the tools it uses."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

from export.backends.registry import backend_named

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and usage of this container's memory, cgroup v2 and v1 (Linux, Documentation/admin-guide/cgroup-v2.rst)."""


def available_memory() -> int:
    """Bytes of memory that can be taken now without swapping, within this container's limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit_file, usage_file in CGROUP_FILES:
        try:
            limit = int(Path(limit_file).read_text())
            usage = int(Path(usage_file).read_text())
        except (OSError, ValueError):
            continue
        available = min(available, limit - usage + _reclaimable(Path(limit_file).parent))
    return max(available, 0)


def _reclaimable(cgroup: Path) -> int:
    """File cache counted as usage, which the kernel gives back under pressure."""
    try:
        rows = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return {name: int(value) for name, value in rows}.get("inactive_file", 0)
    except (OSError, ValueError):
        return 0


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
