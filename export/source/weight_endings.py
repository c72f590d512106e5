"""Endings of files that hold weights in forms that no checkpoint of a family has; they are named in errors alone."""

from __future__ import annotations

CONVERTED = frozenset({".gguf", ".ggml", ".mlc", ".mlmodel", ".onnx", ".tflite"})
"""Forms of other runtimes, made from a checkpoint."""

OTHER_WEIGHTS = CONVERTED | {".ckpt", ".h5", ".msgpack", ".npz", ".pt", ".pth"}
"""These, and forms that other frameworks and training runs save."""
