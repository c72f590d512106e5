"""The index of an MLC package's weight files, checked before TVM reads it: TVM takes every offset as it stands.

Source of the format: apache/tvm, src/runtime/vm/tensor_cache_support.cc: ``f32-to-bf16`` means that float32 tensors lie in
the file as bfloat16, and nothing for other types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_py.errors import PackageError
from runtime_py.files import schema
from runtime_py.files.json_file import MEGABYTE, read_json
from runtime_py.package.files import listed_file

CACHE_FILE = "tensor-cache.json"
MAX_BYTES = 8 * MEGABYTE

HALVED = "f32-to-bf16"
"""The format of tensors that lie in the file as bfloat16 where they are float32."""

ITEM_BYTES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "uint32": 4,
    "int32": 4,
    "int64": 8,
    "uint16": 2,
    "uint8": 1,
    "int8": 1,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the weight files.

    Attributes:
        shard: name of its file in the weight folder; ``offset`` and ``nbytes`` count bytes in it.
        as_bfloat16: a float32 tensor that lies in the file as bfloat16.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: str
    offset: int
    nbytes: int
    as_bfloat16: bool


def read_tensor_cache(folder: Path, manifest: Mapping[str, Any], weights: str) -> dict[str, StoredTensor]:
    """Every tensor of a package's weight folder by name.

    Args:
        folder: the package.
        weights: the weight folder in it, as the manifest names it.

    Raises:
        PackageError: the index is damaged, names a file that is no row of the manifest, or places a tensor outside its file.
    """
    path = listed_file(folder, manifest, f"{weights}/{CACHE_FILE}")
    value = read_json(path, MAX_BYTES)
    problems = schema.load("tensor_cache").problems(value)
    if problems:
        raise _refused(path, problems)
    tensors: dict[str, StoredTensor] = {}
    for shard in value["records"]:
        size = listed_file(folder, manifest, f"{weights}/{shard['dataPath']}").stat().st_size
        problems = [problem for record in shard["records"] for problem in _misplaced(record, size)]
        if shard["nbytes"] != size:
            problems.append(f"{shard['dataPath']} has {size} bytes, {shard['nbytes']} are stated")
        if problems:
            raise _refused(path, problems)
        for record in shard["records"]:
            tensor = _stored(record, shard["dataPath"])
            if tensors.setdefault(tensor.name, tensor) is not tensor:
                raise _refused(path, [f"{tensor.name} is there twice"])
    return tensors


def _stored(record: Mapping[str, Any], shard: str) -> StoredTensor:
    return StoredTensor(
        name=record["name"],
        shape=tuple(record["shape"]),
        dtype=record["dtype"],
        shard=shard,
        offset=record["byteOffset"],
        nbytes=record["nbytes"],
        as_bfloat16=_as_bfloat16(record),
    )


def _as_bfloat16(record: Mapping[str, Any]) -> bool:
    return bool(record["dtype"] == "float32" and record["format"] == HALVED)


def _misplaced(record: Mapping[str, Any], size: int) -> Iterator[str]:
    """What is wrong with a tensor of a file of ``size`` bytes."""
    item = 2 if _as_bfloat16(record) else ITEM_BYTES[record["dtype"]]
    need = math.prod(record["shape"]) * item
    if record["nbytes"] != need:
        yield f"{record['name']} has {record['nbytes']} bytes, {need} make {record['dtype']} {record['shape']}"
    elif record["byteOffset"] + need > size:
        yield f"{record['name']} ends at byte {record['byteOffset'] + need} of a file of {size} bytes"


def _refused(path: Path, problems: list[str]) -> PackageError:
    shown = "\n  ".join(problems[: schema.MAX_PROBLEMS])
    return PackageError(f"{path} is no sound index of weights:\n  {shown}", "tensors inside their files", "export it again")
