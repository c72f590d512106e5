"""Write tensors and side files as a published checkpoint folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from export.demo.recipes.base import Recipe, Tensors

LIMIT = 4_000_000
"""Bytes that a demo checkpoint may take in all."""


def write_checkpoint(folder: Path, recipe: Recipe, tensors: Tensors) -> int:
    """Store ``tensors`` in the dtype the recipe names, beside its side files; returns the bytes written.

    Every file is written under a temporary name and renamed.

    Raises:
        ValueError: the folder would exceed `LIMIT`.
    """
    stored: dict[str, Tensors] = {}
    for name, value in tensors.items():
        file, inner = recipe.file_of(name) if recipe.file_of else ("model.safetensors", name)
        stored.setdefault(file, {})[inner] = value.detach().to(recipe.dtype).contiguous()
    files: Mapping[str, bytes] = {**recipe.side_files(), **{file: _saved(file, part) for file, part in stored.items()}}
    total = sum(len(content) for content in files.values())
    if total > LIMIT:
        raise ValueError(f"the checkpoint would take {total} bytes, more than {LIMIT}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    return total


def _saved(file: str, tensors: Tensors) -> bytes:
    """The bytes of one weight file: safetensors, or a pickle by its name."""
    if file.endswith(".safetensors"):
        return save(tensors, {"format": "pt"})
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
