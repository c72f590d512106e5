"""The shard files and the index of an MLC weight directory, planned from sizes and written one shard at a time.

Which tensor lies in which shard follows from sizes alone, so the plan is made before any weight is read, every shard can
be written on its own, and an export that stopped goes on with the shard it was in. Rule, order and JSON: apache-tvm,
tvm/contrib/tvmjs.py (dump_tensor_cache).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_py.backends.tensor_cache import CACHE_FILE, HALVED, ITEM_BYTES

CAP = 32 << 20
"""Bytes that a shard stays below, unless one tensor alone is larger."""

RAW = "raw"
"""The format of tensors that lie in the file as they are in memory; upstream writes `HALVED` for every one."""

HALVED_INDEX, OLD_INDEX = "tensor-cache-b16.json", "ndarray-cache.json"
"""Beside `CACHE_FILE`."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the directory.

    Attributes:
        dtype: dtype in memory; with format `HALVED` a float32 tensor takes two bytes per element in the file.
        chunks: yields the file bytes in order, a bounded piece at a time.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    chunks: Callable[[], Generator[bytes | memoryview, None, None]]

    @property
    def memory_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def file_bytes(self) -> int:
        item = 2 if self.format == HALVED and self.dtype == "float32" else ITEM_BYTES[self.dtype]
        return math.prod(self.shape) * item


@dataclass(frozen=True)
class Shard:
    """One file and the tensors in it, back to back."""

    file: str
    tensors: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.file_bytes for tensor in self.tensors)


def plan_shards(tensors: Iterable[StoredTensor]) -> list[Shard]:
    """Assign tensors to shards, in the order of the shard numbers.

    A tensor of half the cap or more that does not fit gets the next number at once, before the shard still open.
    """
    groups: list[tuple[StoredTensor, ...]] = []
    pending: list[StoredTensor] = []
    filled = 0
    for tensor in tensors:
        size = tensor.file_bytes
        if filled + size >= CAP:
            if 2 * size >= CAP:
                groups.append((tensor,))
                continue
            if filled:
                groups.append(tuple(pending))
            pending, filled = [], 0
        pending.append(tensor)
        filled += size
    if filled:
        groups.append(tuple(pending))
    return [Shard(f"params_shard_{number}.bin", group) for number, group in enumerate(groups)]


def write_shard(folder: Path, shard: Shard, report: Callable[[int], None] = lambda _: None) -> Path:
    """Write one shard through a temporary name; ``report`` is called with the bytes of every chunk."""
    path = folder / shard.file
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as handle:
        for tensor in shard.tensors:
            written = 0
            with closing(tensor.chunks()) as chunks:  # what threads do for it ends with this, also where the disk is full
                for chunk in chunks:
                    written += handle.write(chunk)
                    report(len(chunk))
            if written != tensor.file_bytes:
                raise AssertionError(f"{tensor.name}: {written} bytes written, {tensor.file_bytes} planned")
    partial.replace(path)
    return path


def index(folder: Path, shards: Sequence[Shard], source_elements: int) -> dict[str, Any]:
    """The content of tensor-cache.json for shards that lie in ``folder``.

    Args:
        source_elements: elements of the checkpoint's tensors, unused ones left out.
    """
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    total = float(sum(tensor.memory_bytes for tensor in tensors))
    metadata = {"ParamSize": len(tensors), "ParamBytes": total, "BitsPerParam": total * 8.0 / source_elements}
    return {"metadata": metadata, "records": [_shard_record(folder, shard) for shard in shards]}


def _shard_record(folder: Path, shard: Shard) -> dict[str, Any]:
    records, offset = [], 0
    for tensor in shard.tensors:
        records.append(
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "format": tensor.format,
                "nbytes": tensor.file_bytes,
                "byteOffset": offset,
            }
        )
        offset += tensor.file_bytes
    with (folder / shard.file).open("rb") as handle:
        digest = hashlib.file_digest(handle, "md5").hexdigest()
    return {"dataPath": shard.file, "format": "raw-shard", "nbytes": offset, "records": records, "md5sum": digest}


def write_index(folder: Path, content: Mapping[str, Any], old_name: bool = True) -> list[Path]:
    """Write tensor-cache.json, its bfloat16 twin where some float32 tensor was halved, and the name older runtimes use."""
    files = {CACHE_FILE: content}
    if old_name:
        files[OLD_INDEX] = content
    twin = copy.deepcopy(dict(content))
    halved = [
        record
        for shard in twin["records"]
        for record in shard["records"]
        if record["format"] == HALVED and record["dtype"] == "float32"
    ]
    for record in halved:
        record["format"], record["dtype"] = RAW, "bfloat16"
    if halved:
        files[HALVED_INDEX] = twin
    return [write_json(folder / name, value, indent=4) for name, value in files.items()]


def write_json(path: Path, value: Any, indent: int = 2) -> Path:
    """Write JSON as MLC's own tools do (no final newline), through a temporary name."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    partial.replace(path)
    return path
