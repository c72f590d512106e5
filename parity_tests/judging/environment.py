"""What a run was made with: library versions and the processor, without anything that names this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from export.backends.registry import backends

LIBRARIES = ("edgeproof", "numpy", "pillow", "torch")
"""Distributions that matter whatever the backend."""


def environment(manifest: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Names to versions; the package's own tools under ``package: <name>``."""
    facts = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    facts["threads"] = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
    for name in dict.fromkeys((*LIBRARIES, *_of_backends())):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in ((manifest or {}).get("tools") or {}).items():
        facts[f"package: {name}"] = str(version)
    return facts


def _of_backends() -> Iterator[str]:
    """Distributions that make the files of a backend, or run them."""
    for backend in backends().values():
        yield from (distribution.name for distribution in backend.runtime.distributions)
        yield from backend.tools
