"""Damages an MLC package in place so that it still verifies: one stored tensor, or the library of this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.records import MLC
from runtime_py.backends.tensor_cache import StoredTensor, read_tensor_cache

Change = Callable[[np.ndarray], np.ndarray]


def manifest_of(package: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    return value


def replaced(package: Path, path: Path, content: bytes) -> None:
    """Write a file of the package and put its size and hash into the manifest."""
    path.unlink()  # another file, not other bytes in one that a process may have mapped
    path.write_bytes(content)
    manifest = manifest_of(package)
    for row in manifest["files"]:
        if row["path"] == path.relative_to(package).as_posix():
            row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (package / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def stored(package: Path, name: str) -> np.ndarray:
    """A stored tensor, in its own dtype.

    Raises:
        KeyError: the package has none of that name.
    """
    tensor = _tensors(package)[name]
    content = _shard(package, tensor).read_bytes()
    return _read(content, tensor).copy()


def tamper(package: Path, name: str, change: Change) -> None:
    """Replace one stored tensor by ``change`` of it.

    Raises:
        KeyError: the package has none of that name.
        AssertionError: nothing changed.
    """
    tensor = _tensors(package)[name]
    shard = _shard(package, tensor)
    content = bytearray(shard.read_bytes())
    before = _read(bytes(content), tensor)
    after = _bytes(np.ascontiguousarray(change(before.copy())), tensor)
    assert after != content[tensor.offset : tensor.offset + tensor.nbytes], "the damage must change something"
    content[tensor.offset : tensor.offset + tensor.nbytes] = after
    replaced(package, shard, bytes(content))


def _tensors(package: Path) -> dict[str, StoredTensor]:
    manifest = manifest_of(package)
    return read_tensor_cache(package, manifest, MLC.block(manifest)["weights"])


def _shard(package: Path, tensor: StoredTensor) -> Path:
    return package / MLC.block(manifest_of(package))["weights"] / tensor.shard


def _read(content: bytes, tensor: StoredTensor) -> np.ndarray:
    kind = np.dtype(np.uint16 if tensor.as_bfloat16 else tensor.dtype)
    count = tensor.nbytes // kind.itemsize
    values = np.frombuffer(content, kind, count, tensor.offset).reshape(tensor.shape)
    return (values.astype(np.uint32) << 16).view(np.float32) if tensor.as_bfloat16 else values


def _bytes(values: np.ndarray, tensor: StoredTensor) -> bytes:
    assert values.shape == tensor.shape
    if tensor.as_bfloat16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(tensor.dtype).tobytes()
