"""A `TensorSource` over tensors whose place in their files is known: any rows of any of them, contiguous or strided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.source.dtypes import ITEM_BYTES
from export.source.file_ranges import bytes_of, new_tensor, read_into, row_bounds
from export.source.tensor_source import TensorInfo
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import shortened

if TYPE_CHECKING:
    import torch

SCRATCH_BYTES = 1 << 20
"""Largest piece of a file that is read beside the rows asked for, when a stored tensor is not contiguous."""


MAX_NAME = 500
"""Characters of a tensor's name; published ones have a hundred."""


def require_plain_name(name: str, file: Path) -> None:
    """Refuse a tensor's name that an error could not show in its line, or that takes long to take apart.

    Raises:
        CheckpointError: it is empty, long, or holds what is not printed, such as a line's end.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"{file} calls a tensor {shortened(name)}",
            f"a name of 1 to {MAX_NAME} printable characters; found {len(name)}",
            "do not use this file unless you know why; its weights fit no model",
        )


@dataclass(frozen=True)
class LocatedTensor:
    """A tensor, the file offset of its first byte, and its strides in elements (None: contiguous)."""

    info: TensorInfo
    offset: int
    stride: tuple[int, ...] | None = None


class LocatedSource:
    """Reads located tensors; files are opened for each read and closed after it.

    Raises:
        CheckpointError: two files hold a tensor of the same name.
    """

    def __init__(self, tensors: Iterable[LocatedTensor]) -> None:
        self._tensors: dict[str, LocatedTensor] = {}
        for tensor in tensors:
            other = self._tensors.setdefault(tensor.info.name, tensor)
            if other is not tensor:
                raise CheckpointError(
                    f"tensor {tensor.info.name} is stored twice, in {other.info.file} and {tensor.info.file}",
                    "every tensor once",
                    "remove the file that does not belong to the checkpoint",
                )
        self._infos = {name: tensor.info for name, tensor in self._tensors.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        located = self._tensors[name]
        start, stop = row_bounds(located.info, start, stop)
        tensor, memory = new_tensor(located.info, stop - start)
        if not memory:
            return tensor
        if located.stride is None:
            read_into(located.info.file, located.offset + start * (len(memory) // (stop - start)), memory)
        else:
            item = ITEM_BYTES[located.info.dtype]
            first = located.offset + (start * located.stride[0] * item if located.stride else 0)
            _gather(located.info.file, first, located.stride, _as_integers(tensor, item))
        return tensor


def _as_integers(tensor: torch.Tensor, item: int) -> torch.Tensor:
    """The same memory as a type of that many bytes whose copies keep every bit."""
    import torch

    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}[item])


def _gather(file: Path, offset: int, stride: tuple[int, ...], out: torch.Tensor) -> None:
    """Fill ``out`` from elements at ``stride``, halving the widest axis until a piece fits the scratch memory."""
    import torch

    item = out.element_size()
    span = 1 + sum((size - 1) * step for size, step in zip(out.shape, stride, strict=True))
    if span * item <= SCRATCH_BYTES:
        scratch = torch.empty(span, dtype=out.dtype)
        read_into(file, offset, bytes_of(scratch))
        out.copy_(scratch.as_strided(out.shape, stride))
        return
    axis = max((axis for axis, size in enumerate(out.shape) if size > 1), key=lambda axis: stride[axis])
    half = out.shape[axis] // 2
    _gather(file, offset, stride, out.narrow(axis, 0, half))
    rest = out.narrow(axis, half, out.shape[axis] - half)
    _gather(file, offset + half * stride[axis] * item, stride, rest)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether elements follow one another in row-major order; axes of size 1 may have any stride."""
    return all(
        size <= 1 or step == natural for size, step, natural in zip(shape, stride, contiguous_stride(shape), strict=True)
    ) or not all(shape)
