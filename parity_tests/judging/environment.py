"""What a run was made with: library versions and the processor, without anything that names this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

LIBRARIES = ("edgeproof", "numpy", "pillow", "torch", "onnxruntime", "onnxruntime-gpu", "onnx", "apache-tvm", "tensorrt-rtx")


def environment(manifest: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Names to versions; the package's own tools under ``package: <name>``."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    found["threads"] = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, version in ((manifest or {}).get("tools") or {}).items():
        found[f"package: {name}"] = str(version)
    return found
