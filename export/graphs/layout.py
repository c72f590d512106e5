"""Where each parameter of a graph lies in its ``.onnx_data`` file, fixed before any weight is read.

A tensor that a runtime may want to map by itself starts on a page: large ones on 64 KiB, Windows' granularity, middling
ones on 4 KiB. Source: onnx/onnx.proto3, remarks on ``external_data`` of TensorProto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ITEM_BITS = {"float32": 32, "float16": 16, "uint8": 8, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Place:
    """One tensor in the data file: bytes ``offset`` to ``offset + length``.

    ``dtype`` is a NumPy dtype name, or ``int4``, whose last axis is even: two values to a byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def length(self) -> int:
        return ITEM_BITS[self.dtype] * math.prod(self.shape) // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return ITEM_BITS[self.dtype] * math.prod(self.shape[1:]) // 8


def alignment(length: int) -> int:
    """What a tensor of this many bytes is aligned to."""
    if length >= 1 << 20:
        return 1 << 16
    return 1 << 12 if length >= 1 << 12 else 64


def lay_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[list[Place], int]:
    """Places of (name, dtype, shape) tensors in the order given, and the size of the file."""
    places: list[Place] = []
    end = 0
    for name, dtype, shape in tensors:
        length = Place(name, dtype, shape, 0).length
        step = alignment(length)
        place = Place(name, dtype, shape, -(-end // step) * step)
        places.append(place)
        end = place.offset + length
    return places, end
