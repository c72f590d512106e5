"""Bytes of a file by offset, into memory of the caller's: no mapping, no handle kept, no byte read twice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from export.source.tensor_source import TensorInfo
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import FETCH, LFS_POINTER

if TYPE_CHECKING:
    import torch

MOST_POINTER_BYTES = 1024
"""Of a pointer, by its specification."""

DOWNLOAD_AGAIN = "download the file again, and compare its size and sha256 with the published ones"


def read_into(file: Path, offset: int, buffer: memoryview) -> None:
    """Fill ``buffer`` from ``offset``, going on after short reads.

    Raises:
        CheckpointError: the file ends before the buffer is full, or cannot be read.
    """
    done = 0
    try:
        with file.open("rb", buffering=0) as handle:
            handle.seek(offset)
            while done < len(buffer):
                count = handle.readinto(buffer[done:])
                if not count:
                    break
                done += count
    except OSError as error:
        raise unreadable(file, error) from error
    if done < len(buffer):
        raise CheckpointError(
            f"{file} ends at byte {offset + done}",
            f"{len(buffer)} bytes at offset {offset}, found {done}: the file is truncated",
            DOWNLOAD_AGAIN,
        )


def unreadable(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that the operating system does not let us read."""
    return CheckpointError(
        f"cannot read {file}: {error.strerror or error}", "a readable file", "check that it exists and may be read"
    )


def file_size(file: Path) -> int:
    """Bytes of a regular file.

    Raises:
        CheckpointError: there is no such file, it is a folder, pipe or device, or Git LFS has not fetched it.
    """
    try:
        if file.is_file():
            size = file.stat().st_size
            if size <= MOST_POINTER_BYTES and file.read_bytes().startswith(LFS_POINTER):
                raise CheckpointError(f"{file} is a Git LFS pointer", "the file itself", FETCH)
            return size
    except OSError as error:
        raise unreadable(file, error) from error
    raise CheckpointError(f"{file} is missing", "a regular file with weights", "download the checkpoint again")


def row_bounds(info: TensorInfo, start: int, stop: int | None) -> tuple[int, int]:
    """``start`` and ``stop`` made definite and checked; a tensor without axes counts as one row.

    Raises:
        IndexError: the rows are not rows of this tensor.
    """
    rows = info.shape[0] if info.shape else 1
    stop = rows if stop is None else stop
    if not 0 <= start <= stop <= rows:
        raise IndexError(f"rows {start} to {stop} of {info.name}, which has {rows}")
    return start, stop


def new_tensor(info: TensorInfo, rows: int) -> tuple[torch.Tensor, memoryview]:
    """An uninitialised tensor of ``rows`` rows of ``info``, and the memory behind it."""
    import torch

    dtype = getattr(torch, info.dtype, None)
    if dtype is None:
        raise CheckpointError(
            f"{info.name} in {info.file} is stored as {info.dtype}",
            f"a type that PyTorch {torch.__version__} has",
            "convert the checkpoint to bfloat16, float16 or float32",
        )
    shape = (rows, *info.shape[1:]) if info.shape else ()
    tensor = torch.empty(shape, dtype=dtype)
    if not tensor.numel():
        return tensor, memoryview(b"")
    return tensor, bytes_of(tensor)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data.cast("B")
