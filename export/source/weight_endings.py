"""Endings of files that hold weights in forms that no checkpoint of a family has; they are named in errors alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

CONVERTED = frozenset({".gguf", ".ggml", ".mlc", ".mlmodel", ".onnx", ".tflite"})
"""Forms of other runtimes, made from a checkpoint."""

OTHER_WEIGHTS = CONVERTED | {".ckpt", ".h5", ".msgpack", ".npz", ".pt", ".pth"}
"""These, and forms that other frameworks and training runs save."""


def converted(names: Iterable[str]) -> list[str]:
    """Those of some files that another runtime's converter made from a checkpoint."""
    return [name for name in names if PurePath(name).suffix.lower() in CONVERTED]


def what_to_name(names: Iterable[str]) -> str:
    """What to name in place of `converted` files, for the last part of an error."""
    kinds = sorted({PurePath(name).suffix[1:].upper() for name in names})
    return (
        f"{' and '.join(kinds)} files are made from a checkpoint and not read; name the one they were made from: its folder "
        "with config.json and safetensors or pickles, or its hub id"
    )
