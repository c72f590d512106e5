"""Safetensors files, read by offset so that memory holds only the rows asked for.

The published library maps a file whole: reading a 1.3 GB one row by row leaves 1.3 GB resident, and 30 MB here (measured
with safetensors 0.8). It gives no offsets either, so the header is read here, by its rules, and the tests hold both readings
against each other. Every header is checked whole before any tensor is offered. Source of the format and its rules:
huggingface/safetensors, README.md ("Format") and safetensors/src/tensor.rs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from export.source.dtypes import SAFETENSORS_DTYPES
from export.source.file_ranges import DOWNLOAD_AGAIN, file_size, read_into
from export.source.located_source import LocatedTensor, require_plain_name
from export.source.tensor_source import TensorInfo
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, parse_json

MAX_HEADER_BYTES = 8 * MEGABYTE
"""Some 80,000 tensors. The published reader allows 100 MB, which take gigabytes of memory once they are parsed."""

MAX_COUNT = 2**64 - 1
"""Of elements and bytes: the published reader's are 64-bit."""

MAX_STRIDE = 2**63 - 1
"""Of a tensor whose empty axes count as one: what PyTorch can index, an empty one too."""


def read_header(file: Path) -> list[LocatedTensor]:
    """The tensors of one file in the order of their bytes.

    Raises:
        CheckpointError: the header is not what the format allows, or does not describe this file's bytes exactly.
    """
    size = file_size(file)
    if size < 8:
        _damaged(file, "a file of at least 8 bytes, which give the header's length", f"{size} bytes")
    length = int.from_bytes(_bytes(file, 0, 8), "little")
    if length > size - 8:
        _damaged(file, f"a header of at most {size - 8} bytes, the rest of the file", f"a header length of {length}")
    if length > MAX_HEADER_BYTES:
        _damaged(file, f"a header of at most {MAX_HEADER_BYTES} bytes", f"a header length of {length}")
    header = _parse(file, _bytes(file, 8, length))
    data_size = size - 8 - length
    entries = [_entry(file, name, entry) for name, entry in header.items() if name != "__metadata__"]
    entries.sort(key=lambda placed: placed[1])
    position, tensors = 0, []
    for info, (begin, end) in entries:
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            _damaged(file, f"{info.name} at data offset {position}", f"offset {begin}, which {problem}")
        if end > data_size:
            _damaged(file, f"{info.name} to end at {end} of the data", f"{data_size} bytes of data: the file is truncated")
        tensors.append(LocatedTensor(info, 8 + length + begin))
        position = end
    if position != data_size:
        _damaged(file, f"{position} bytes of data, as the header says", f"{data_size} bytes")
    return tensors


def _bytes(file: Path, offset: int, length: int) -> bytearray:
    buffer = bytearray(length)
    read_into(file, offset, memoryview(buffer))
    return buffer


def _damaged(file: Path, expected: str, found: str) -> NoReturn:
    raise CheckpointError(f"{file} is no sound safetensors file", f"{expected}; found {found}", DOWNLOAD_AGAIN)


def _parse(file: Path, text: bytearray) -> dict[str, Any]:
    header = parse_json(bytes(text), file, CheckpointError, DOWNLOAD_AGAIN)
    if not isinstance(header, dict):
        _damaged(file, "a JSON object as header", f"a {type(header).__name__}")
    metadata = header.get("__metadata__")
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        _damaged(file, "texts by name as __metadata__", str(metadata)[:80])
    return header


def _entry(file: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    require_plain_name(name, file)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _damaged(file, f"dtype, shape and data_offsets for {name}", str(entry)[:80])
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in SAFETENSORS_DTYPES:
        _damaged(file, f"a dtype of the format for {name} ({', '.join(SAFETENSORS_DTYPES)})", str(code)[:80])
    if not _counts(shape):
        _damaged(file, f"a list of sizes as shape of {name}", str(shape)[:80])
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _damaged(file, f"an ascending [begin, end] as data_offsets of {name}", str(offsets)[:80])
    dtype, bits = SAFETENSORS_DTYPES[code]
    total = _product([*shape, bits])
    if total is None:
        _damaged(file, f"at most {MAX_COUNT} elements and bits in {name}", f"the shape {str(shape)[:80]}")
    if _product([max(size, 1) for size in shape], MAX_STRIDE) is None:
        _damaged(file, f"a shape of {name} that can be indexed", str(shape)[:80])
    need, rest = divmod(total, 8)
    begin, end = offsets
    if rest or end - begin != need:
        expected = f"{need} bytes for {name}, {code} of shape {str(shape)[:80]}"
        _damaged(file, expected, f"data_offsets {offsets}, {end - begin} bytes")
    if bits == 4:
        if not shape or shape[-1] % 2:
            _damaged(file, f"an even last axis for {name}, two 4-bit floats to a byte", f"shape {str(shape)[:80]}")
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorInfo(name, dtype, tuple(shape), file, end - begin), (begin, end)


def _product(factors: list[int], most: int = MAX_COUNT) -> int | None:
    """Their product, or None when it, or a part of it from the left, exceeds ``most``: 64 bits in the published reader."""
    product = 1
    for factor in factors:
        product *= factor
        if product > most:
            return None
    return product


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_COUNT for value in values)
