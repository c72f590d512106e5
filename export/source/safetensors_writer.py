"""Write safetensors files a piece at a time, in shards of bounded size with an index, as published checkpoints are.

Source of the format: huggingface/safetensors, README.md ("Format"); of the shard naming: huggingface/transformers,
``save_pretrained``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.source.dtypes import ITEM_BYTES, SAFETENSORS_CODES

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written; ``dtype`` by PyTorch's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


Pieces = Callable[[PlannedTensor], Iterator[bytes | memoryview]]
"""Gives a tensor's little-endian bytes in order, in pieces of any size."""


def shards(tensors: Sequence[PlannedTensor], limit: int = SHARD_BYTES) -> list[list[PlannedTensor]]:
    """Tensors in order, cut into files of at most ``limit`` bytes of data; one larger tensor gets a file of its own."""
    files: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    return files


def write_sharded(folder: Path, tensors: Sequence[PlannedTensor], pieces: Pieces, limit: int = SHARD_BYTES) -> list[Path]:
    """Write ``model.safetensors``, or numbered shards and their index, into an existing folder.

    The caller gives a folder that becomes visible only afterwards (a temporary name), so that nothing half-written
    stays under the final one.
    """
    files = shards(tensors, limit)
    if len(files) == 1:
        write_file(folder / "model.safetensors", files[0], pieces)
        return [folder / "model.safetensors"]
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        write_file(folder / name, part, pieces)
    weight_map = {tensor.name: name for name, part in zip(names, files, strict=True) for tensor in part}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*(folder / name for name in names), path]


def write_file(path: Path, tensors: Sequence[PlannedTensor], pieces: Pieces) -> None:
    """Write one safetensors file.

    Raises:
        ValueError: the pieces of a tensor do not add up to its size, or a name is given twice.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        if tensor.name in header:
            raise ValueError(f"tensor {tensor.name} is given twice")
        span = [offset, offset + tensor.nbytes]
        header[tensor.name] = {"dtype": SAFETENSORS_CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as handle:
        _write_all(handle, struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            written = sum(_write_all(handle, piece) for piece in pieces(tensor))
            if written != tensor.nbytes:
                raise ValueError(f"tensor {tensor.name} gave {written} bytes, its shape and dtype make {tensor.nbytes}")


def _write_all(handle, piece: bytes | memoryview) -> int:
    view = memoryview(piece).cast("B")
    done = 0
    while done < len(view):
        done += handle.write(view[done:])
    return done
