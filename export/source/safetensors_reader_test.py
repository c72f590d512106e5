"""Safetensors files, good and bad, against the published reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from export.source.dtypes import ITEM_BYTES, SAFETENSORS_CODES, SAFETENSORS_DTYPES
from export.source.located_source import LocatedSource
from export.source.safetensors_reader import read_header
from runtime_py.errors import CheckpointError


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).reshape(-1).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


READABLE = sorted(name for name in SAFETENSORS_CODES if hasattr(torch, name))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_agrees_with_the_published_reader(tmp_path: Path, data: st.DataObject) -> None:
    tensors = {}
    for index in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from([name for name in READABLE if name != "float8_e8m0fnu"]))
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        count = torch.Size(shape).numel() * ITEM_BYTES[dtype]
        raw = torch.randint(0, 2 if dtype == "bool" else 256, (count,), dtype=torch.uint8)
        tensors[f"t{index}"] = raw.view(getattr(torch, dtype)).reshape(shape)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    source = LocatedSource(read_header(path))
    with safe_open(path, "pt") as published:
        assert set(source.infos) == set(published.keys())
        for name in tensors:
            assert same_bits(source.read(name), published.get_tensor(name))
            rows = source.infos[name].shape[:1]
            if rows:
                start = data.draw(st.integers(0, rows[0]))
                stop = data.draw(st.integers(start, rows[0]))
                assert same_bits(source.read(name, start, stop), published.get_tensor(name)[start:stop])


def test_every_dtype_of_the_format_is_listed_and_read_or_refused_by_name(tmp_path: Path) -> None:
    header, offset = {}, 0
    for code, (_, width) in SAFETENSORS_DTYPES.items():
        header[code] = entry(offset, offset + width, code, [2, 4])
        offset += width
    data = bytes(index % 251 for index in range(offset))
    source = LocatedSource(read_header(write(tmp_path / "all.safetensors", header, data)))
    assert len(source.infos) == len(SAFETENSORS_DTYPES)
    for code, (name, _) in SAFETENSORS_DTYPES.items():
        assert source.infos[code].dtype == name
        if hasattr(torch, name):
            begin, end = header[code]["data_offsets"]
            assert bytes(source.read(code).view(torch.uint8).numpy().tobytes()) == data[begin:end], code
        else:
            with pytest.raises(CheckpointError, match=name):
                source.read(code)
    assert source.infos["F4"].shape == (2, 2)


def test_rows_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    source = LocatedSource(read_header(write(tmp_path / "a.safetensors", {"a": entry(0, 12)}, bytes(12))))
    for start, stop in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(IndexError, match="which has 3"):
            source.read("a", start, stop)


TWO = {"a": entry(0, 8), "b": entry(8, 16)}
BAD: dict[str, tuple[dict[str, Any] | bytes, bytes, str]] = {
    "truncated data": (TWO, bytes(15), "15 bytes of data: the file is truncated"),
    "surplus data": (TWO, bytes(17), "16 bytes of data.*found 17 bytes"),
    "not JSON": (b"{a", b"", "is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "is not JSON"),
    "deeply nested": (b"[" * 100_000, b"", "too deeply"),
    "a list": (b"[]", b"", "found a list"),
    "name twice": (b'{"a": {}, "a": {}}', b"", "'a' is given twice"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "offset 4, which overlaps"),
    "hole": ({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16), "offset 12, which leaves a hole"),
    "out of range": ({"a": entry(0, 4000)}, bytes(16), "4000 of the data; found 16"),
    "wrong size": ({"a": entry(0, 8, shape=[3])}, bytes(8), "12 bytes for a.*8 bytes"),
    "descending": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8), "ascending"),
    "negative": ({"a": entry(-8, 0)}, bytes(8), "ascending"),
    "fractional": ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, bytes(8), "list of sizes"),
    "boolean size": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4), "list of sizes"),
    "unknown dtype": ({"a": entry(0, 8, "F31")}, bytes(8), "found F31"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "dtype, shape and data_offsets"),
    "digits": (b'{"a": ' + b"9" * 8000 + b"}", b"", "8000 digits"),
    "size of 65 bits": ({"a": {"dtype": "F32", "shape": [2**64], "data_offsets": [0, 4]}}, bytes(4), "list of sizes"),
    "product of 8000 digits": (
        {"a": {"dtype": "F32", "shape": [2**60] * 400, "data_offsets": [0, 4]}},
        bytes(4),
        "elements",
    ),
    "product that ends in 0": ({"a": {"dtype": "F32", "shape": [2**60, 2**60, 0], "data_offsets": [0, 0]}}, b"", "elements"),
    "empty, and too long to index": ({"a": entry(0, 0, shape=[0, 2**64 - 1])}, b"", "can be indexed"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "texts by name"),
    "metadata in a list": ({"__metadata__": []}, b"", "texts by name"),
    "half a byte": ({"a": entry(0, 1, "F4", [3])}, bytes(1), "1 bytes for a"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_header_is_refused(tmp_path: Path, name: str) -> None:
    header, data, message = BAD[name]
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 8 bytes.*found 0 bytes"),
        (b"\1\2\3", "found 3 bytes"),
        (struct.pack("<Q", 93) + b"{}", "at most 2 bytes.*header length of 93"),
        (b"\xff" * 8 + b"{}", "header length of 18446744073709551615"),
    ],
)
def test_a_damaged_start_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_absurd_header_length_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", 10**12))
        handle.truncate(10**12 + 8)
    with pytest.raises(CheckpointError, match="at most 8388608 bytes"):
        read_header(path)


def test_file_cut_after_opening(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry(0, 4000)}, bytes(4000))
    source = LocatedSource(read_header(path))
    with path.open("r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(CheckpointError, match="ends at byte 1000"):
        source.read("a")


def test_one_name_in_two_files(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.safetensors", {"a": entry(0, 4)}, bytes(4)) for name in "xy"]
    with pytest.raises(CheckpointError, match="stored twice"):
        LocatedSource(tensor for file in files for tensor in read_header(file))
