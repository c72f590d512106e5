"""What a run was made with: library versions and the processor, without anything that names this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from export.cluster.product import library_versions


def environment(manifest: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Names to versions; the package's own tools under ``package: <name>``."""
    facts = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    facts["threads"] = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
    facts |= library_versions()
    for name, version in ((manifest or {}).get("tools") or {}).items():
        facts[f"package: {name}"] = str(version)
    return facts
