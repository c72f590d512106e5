"""Export backends by name, imported when asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.backends.base import ExportBackend

BACKENDS = {
    "onnx": "export.backends.onnx.backend:OnnxBackend",
    "tensorrt": "export.backends.tensorrt.backend:TensorrtBackend",
    "mlc": "export.backends.mlc.backend:MlcBackend",
}
"""Backend name to ``module:class``."""

BACKEND_OF_RUNTIME = {"ort": "onnx", "trt": "tensorrt", "mlc": "mlc"}
"""Which export backend makes the files that a runtime_py backend loads."""


def backend(name: str) -> ExportBackend:
    """A new backend object; its libraries are imported by its steps, not here."""
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
