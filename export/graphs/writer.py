"""Writes a traced stage as ``NAME.onnx`` and ``NAME.onnx_data``, weights streamed some rows at a time.

The layout comes first (`layout`), then rows are read, cast or packed and put at their offsets. Equal inputs give equal
bytes. Both files are made under temporary names and renamed when they are whole, the data before the graph that names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto
from torch import Tensor

from export.graphs.layout import Place, lay_out
from export.graphs.stage_values import Piece, StageWeights, as_bytes, pieces, values
from export.graphs.write_back import begin_write_back
from export.source.row_threads import in_order
from runtime_py.errors import MachineError

WRITE_BACK = 64 << 20
"""Bytes after which the system is told to write what it holds of a file."""

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.INT4: "int4",
}
"""What a parameter can be stored as."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Elsewhere:
    """Where a parameter lies whose bytes another stage's data file holds already; the file is in the same folder."""

    file: str
    offset: int
    length: int


def write_stage(
    model: onnx.ModelProto,
    source: StageWeights,
    path: Path,
    progress: Progress,
    data_name: str | None = None,
    elsewhere: Mapping[str, Elsewhere] | None = None,
) -> list[Path]:
    """Write ``path`` (``.onnx``) and the data file beside it; return both.

    Args:
        progress: called with bytes done and bytes in all.
        data_name: of the data file; that of ``path`` and ``_data`` when None.
        elsewhere: parameters by name that are read from files written before, and not written again.

    Raises:
        CheckpointError: a weight does not fit the dtype it is stored in.
        MachineError: the disk is full or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(data_name or path.name + "_data")
    places, size = _place(model, data.name, elsewhere or {})
    total = sum(place.length for place in places)
    with _whole_file(data) as file:
        if size:
            _reserve(file, size)
        done = begun = 0
        with closing(in_order(partial(_write_piece, file, source), pieces(places, source))) as counts:
            for written in counts:
                done += written
                progress(done, total)
                if done - begun >= WRITE_BACK:
                    begin_write_back(file)
                    begun = done
    write_graph(model, path)
    return [path, data]


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph alone, whose weights lie in files that are there already.

    Raises:
        MachineError: the disk is full or cannot be written.
    """
    with _whole_file(path) as file:
        _write_at(file, model.SerializeToString(deterministic=True), 0)  # maps in the order of their keys


def _place(model: onnx.ModelProto, data_file: str, elsewhere: Mapping[str, Elsewhere]) -> tuple[list[Place], int]:
    """Lay out the parameters of ``model`` and make its initializers point into ``data_file``, or to where they are."""
    tensors = list(parameters(model))
    own = [tensor for tensor in tensors if tensor.name not in elsewhere]
    places, size = lay_out((t.name, DTYPES[t.data_type], tuple(t.dims)) for t in own)
    lying = {place.name: Elsewhere(data_file, place.offset, place.length) for place in places} | dict(elsewhere)
    for tensor in tensors:
        at = lying[tensor.name]
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", at.file), ("offset", str(at.offset)), ("length", str(at.length))):
            tensor.external_data.add(key=key, value=value)
    return places, size


def lying(graph: Path, names: Iterable[str]) -> dict[str, Elsewhere]:
    """Where parameters of a written graph lie, by name."""
    model, places = onnx.load(str(graph), load_external_data=False), {}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in names:
        told = {entry.key: entry.value for entry in tensors[name].external_data}
        places[name] = Elsewhere(told["location"], int(told["offset"]), int(told["length"]))
    return places


def parameters(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Initializers that stand for parameters: those without data."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data", "external_data")
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data") and not any(getattr(tensor, field) for field in fields):
            yield tensor


def _reserve(file: int, size: int) -> None:
    """Take the space now where the system can, so that a full disk shows before the work."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _write_piece(file: int, source: StageWeights, piece: Piece) -> int:
    """Write one piece at its places; returns its bytes."""
    return sum(_put(file, place, piece.start, value) for place, value in values(piece, source))


def _put(file: int, place: Place, start: int, value: Tensor) -> int:
    data = as_bytes(value)
    _write_at(file, data.data, place.offset + start * place.row_bytes)
    return data.nbytes


def _write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        # a call may write less than it was given
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _whole_file(path: Path) -> Iterator[int]:
    """A descriptor to a temporary neighbour of ``path`` that gets its name when the block ends well, else goes."""
    partial = path.with_name(path.name + ".partial")
    try:
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            yield file
            os.fsync(file)
        finally:
            os.close(file)
        partial.replace(path)
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror or error}",
            "room on the disk and the right to write",
            "free some space or choose another folder with -o",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
