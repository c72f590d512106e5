"""Safetensors files, single or sharded, read by offset so that memory holds only the rows asked for."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from export.source.tensor_source import TensorInfo

if TYPE_CHECKING:
    import torch

DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsSource:
    """A `TensorSource` over one or more safetensors files."""

    def __init__(self, files: list[Path]) -> None:
        self._infos: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        for file in files:
            self._index(file)

    def _index(self, file: Path) -> None:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            self._infos[name] = TensorInfo(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), file, end - begin)
            self._offsets[name] = 8 + length + begin

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        info = self._infos[name]
        dtype = getattr(torch, info.dtype)
        if not info.shape:
            start, stop, row = 0, 1, info.nbytes
            shape: tuple[int, ...] = ()
        else:
            stop = info.shape[0] if stop is None else stop
            row = info.nbytes // max(info.shape[0], 1)
            shape = (stop - start, *info.shape[1:])
        buffer = bytearray((stop - start) * row)
        with info.file.open("rb", buffering=0) as handle:
            handle.seek(self._offsets[name] + start * row)
            handle.readinto(buffer)
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape) if buffer else torch.empty(shape, dtype=dtype)
