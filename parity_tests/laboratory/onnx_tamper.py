"""Damages one stored tensor of an ONNX package in place: what the localisation tests look for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from runtime_py.backends.records import MANY_ROWS, ONNX


def tamper(package: Path, stage: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace an initializer's data by ``change(data)`` and put the new hash into the manifest, so that it verifies.

    Args:
        stage: or `MANY_ROWS`, for the second decoder.
    """
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    block = ONNX.block(manifest)
    graph = package / (block[MANY_ROWS] if stage == MANY_ROWS else block["stages"][stage])["file"]
    tensor = next(t for t in onnx.load(str(graph), load_external_data=False).graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = graph.parent / place["location"]
    content = bytearray(data.read_bytes())
    start, length = int(place["offset"]), int(place["length"])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    before = np.frombuffer(bytes(content[start : start + length]), dtype).reshape(tuple(tensor.dims))
    after = np.ascontiguousarray(change(before.copy())).astype(dtype)
    assert not np.array_equal(before, after), "the damage must change something"
    content[start : start + length] = after.tobytes()
    data.write_bytes(content)
    for row in manifest["files"]:
        if row["path"] == data.relative_to(package).as_posix():
            row["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
