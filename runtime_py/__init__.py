"""Run packages: ``runtime_py.load(folder).chat("What is this?", images=["a.jpg"])``. NumPy and Pillow, no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_py.generation.generate import Overrides
    from runtime_py.model import Answer, Model, Token, load

__all__ = ["Answer", "Model", "Overrides", "Token", "load"]

# ONNX Runtime reports to its maker from 1.29 on, and its function against that comes too late for the first report. It reads
# this when it is loaded, so it stands where every import of ours begins; 0 in the environment leaves the reports on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {"Answer": "model", "Model": "model", "Overrides": "generation.generate", "Token": "model", "load": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime_py' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"runtime_py.{_HOMES[name]}"), name)
