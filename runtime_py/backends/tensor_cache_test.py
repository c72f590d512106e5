"""The index of an MLC package's weights: tensors inside their files, files inside the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends.tensor_cache import ITEM_BYTES, read_tensor_cache
from runtime_py.errors import PackageError
from runtime_py.package.files import rows_of

GOOD = {"name": "a", "shape": [4, 8], "dtype": "float16", "format": "f32-to-bf16", "nbytes": 64, "byteOffset": 0}
HALVED = {"name": "b", "shape": [2, 3], "dtype": "float32", "format": "f32-to-bf16", "nbytes": 12, "byteOffset": 64}


def package(folder: Path, records: list[dict[str, Any]], **shard: Any) -> dict[str, Any]:
    """A package of one shard of 76 bytes; its manifest's files."""
    (folder / "mlc").mkdir(exist_ok=True)
    (folder / "mlc" / "p.bin").write_bytes(bytes(76))
    row = {"dataPath": "p.bin", "format": "raw-shard", "nbytes": 76, "records": records, **shard}
    (folder / "mlc" / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [row]}))
    return {"files": rows_of(folder)}


def test_tensors_are_placed(tmp_path: Path) -> None:
    tensors = read_tensor_cache(tmp_path, package(tmp_path, [GOOD, HALVED]), "mlc")
    assert {name: (tensor.offset, tensor.nbytes, tensor.as_bfloat16) for name, tensor in tensors.items()} == {
        "a": (0, 64, False),
        "b": (64, 12, True),
    }


def test_numbers_of_every_type_take_their_bytes(tmp_path: Path) -> None:
    kinds = ["float16", "float32", "uint32", "int32", "int64", "uint16", "uint8", "int8"]
    sizes = {"bfloat16": 2} | {kind: np.dtype(kind).itemsize for kind in kinds}
    rows = [
        {**GOOD, "name": kind, "dtype": kind, "format": "raw", "shape": [3], "nbytes": 3 * sizes[kind]} for kind in sizes
    ]
    tensors = read_tensor_cache(tmp_path, package(tmp_path, rows), "mlc")
    assert {name: tensor.nbytes // 3 for name, tensor in tensors.items()} == sizes
    assert set(ITEM_BYTES) == set(sizes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"byteOffset": 13}, "ends at byte 77 of a file of 76"),
        ({"byteOffset": 2**40}, "of a file of 76"),
        ({"byteOffset": -1}, "byteOffset: -1"),
        ({"nbytes": 63}, "63 bytes, 64 make"),
        ({"nbytes": 2**50}, "nbytes"),
        ({"shape": [4, 2**32]}, "make float16"),
        ({"shape": [2**32] * 8}, "make float16"),
        ({"shape": [-4, -8]}, r"shape\[0\]"),
        ({"dtype": "object"}, "dtype"),
        ({"dtype": "float32"}, "128 make|64 make"),
        ({"format": "zip"}, "format"),
        ({"name": ""}, "name"),
        ({"name": "b"}, "b is there twice"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_misplaced_tensors_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    manifest = package(tmp_path, [{**GOOD, **changes}, HALVED])
    if changes == {"dtype": "float32"}:
        manifest = package(tmp_path, [{**GOOD, "dtype": "float32", "format": "raw"}])
    with pytest.raises(PackageError, match=words):
        read_tensor_cache(tmp_path, manifest, "mlc")


@pytest.mark.parametrize("name", ["../p.bin", "/etc/passwd", "sub/p.bin", "", ".", "none.bin", "p.bin\n"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.bin").write_bytes(bytes(76))
    with pytest.raises(PackageError, match=r"dataPath|no row"):
        read_tensor_cache(tmp_path, package(tmp_path, [GOOD], dataPath=name), "mlc")


def test_a_file_shorter_than_its_row_says(tmp_path: Path) -> None:
    manifest = package(tmp_path, [GOOD, HALVED])
    (tmp_path / "mlc" / "p.bin").write_bytes(bytes(70))
    with pytest.raises(PackageError, match="of a file of 70 bytes"):
        read_tensor_cache(tmp_path, manifest, "mlc")


@pytest.mark.parametrize("stated", [0, 75, 255])
def test_a_file_of_another_size_than_stated(tmp_path: Path, stated: int) -> None:
    with pytest.raises(PackageError, match=f"76 bytes, {stated} are stated"):
        read_tensor_cache(tmp_path, package(tmp_path, [GOOD, HALVED], nbytes=stated), "mlc")
