"""Which TensorRT is installed: ``tensorrt`` (datacentre) before ``tensorrt_rtx`` (TensorRT for RTX); one Python API.

TensorRT for RTX builds without a GPU; its engines hold no compiled kernels and run on any GPU of the compute
capabilities below or later (docs.nvidia.com/deeplearning/tensorrt-rtx, "CPU-Only AOT and TensorRT-RTX Engines").
TensorRT compiles for the GPU it builds on.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from runtime_py.backends.trt_device import MODULES
from runtime_py.errors import MachineError

RTX_COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What an RTX engine covers when the builder is told nothing."""


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT. ``compute_capabilities`` is empty when an engine fits only the GPU it was built on."""

    name: str
    version: str
    compute_capabilities: tuple[str, ...]
    module: Any


def load_flavour(name: str = "") -> Flavour:
    """Import TensorRT.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``; "" takes the first that imports.

    Raises:
        MachineError: none is installed.
    """
    for flavour, module_name in MODULES.items():
        if name in ("", flavour) and importlib.util.find_spec(module_name) is not None:
            try:
                module = importlib.import_module(module_name)
            except (ImportError, OSError, RuntimeError):
                continue
            if hasattr(module, "Builder"):
                covered = RTX_COMPUTE_CAPABILITIES if flavour == "tensorrt-rtx" else ()
                return Flavour(flavour, module.__version__, covered, module)
    raise MachineError(
        f"{name or 'TensorRT'} is not installed",
        "the Python package tensorrt or tensorrt-rtx, with its libraries",
        "pip install 'edgeproof[tensorrt]'",
    )
