"""Open a checkpoint folder whatever weight files it holds."""

from __future__ import annotations

from pathlib import Path

from export.source.safetensors_reader import SafetensorsSource
from export.source.tensor_source import TensorSource
from runtime_py.errors import CheckpointError


def open_checkpoint(folder: Path) -> TensorSource:
    """The tensors of a folder with safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no weights", "model.safetensors", "download the checkpoint again")
    return SafetensorsSource(files)
