"""Weights read into large pages are those that TVM's own loader reads, which a phone's engine calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime_py.backends.large_pages import large_page
from runtime_py.backends.mlc_weights import ALIGNMENT, read_weights
from runtime_py.backends.tensor_cache import CACHE_FILE, StoredTensor, read_tensor_cache
from runtime_py.package.files import rows_of

SHAPES = (
    ("words", (700, 1024), "uint32"),
    ("scales", (3, 5), "float16"),
    ("halved", (7, 3), "float32"),
    ("one", (1,), "int8"),
)


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    """Tensors of ``tmp_path / weights``, in two files, as an index places them."""
    numbers, shards = np.random.default_rng(0), []
    (tmp_path / "weights").mkdir()
    for number, tensors in enumerate((SHAPES[:2], SHAPES[2:])):
        content, records = b"", []
        for name, shape, dtype in tensors:
            halved = dtype == "float32"
            values = numbers.integers(0, 100, shape).astype(np.uint16 if halved else dtype)
            record = {"name": name, "shape": shape, "dtype": dtype, "format": "f32-to-bf16" if halved else "raw"}
            records.append({**record, "nbytes": values.nbytes, "byteOffset": len(content)})
            content += values.tobytes()
        file = {"dataPath": f"params_shard_{number}.bin", "format": "raw-shard", "nbytes": len(content)}
        shards.append({**file, "records": records, "md5sum": "0" * 32})
        (tmp_path / "weights" / str(file["dataPath"])).write_bytes(content)
    totals = {"ParamSize": 4, "ParamBytes": 1.0, "BitsPerParam": 16.0}
    (tmp_path / "weights" / CACHE_FILE).write_text(json.dumps({"metadata": totals, "records": shards}))
    return read_tensor_cache(tmp_path, {"files": rows_of(tmp_path)}, "weights")


def test_every_tensor_is_what_tvm_reads(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    tvm = pytest.importorskip("tvm")
    names = ["halved", "one", "words", "scales"]
    tvm.get_global_func("vm.builtin.tensor_cache.load")(str(tmp_path / "weights"), 1, 0)
    theirs = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names)
    tvm.get_global_func("vm.builtin.tensor_cache.clear")()
    ours = read_weights(tmp_path / "weights", [stored[name] for name in names])
    for name, array, tensor in zip(names, ours, theirs, strict=True):
        assert (str(array.dtype), array.shape) == (tensor.dtype, tuple(tensor.shape))
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=name)
        assert array.ctypes.data % ALIGNMENT == 0


@pytest.mark.skipif(not large_page(), reason="the system gives no large pages")
def test_they_lie_behind_one_another_from_a_large_page_on(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    first, second = read_weights(tmp_path / "weights", [stored["words"], stored["scales"]])
    assert first.ctypes.data % large_page() == 0 and second.ctypes.data == first.ctypes.data + first.nbytes


def test_a_file_that_shrank_meanwhile_is_told(tmp_path: Path, stored: dict[str, StoredTensor]) -> None:
    (tmp_path / "weights" / stored["scales"].shard).write_bytes(b"short")
    with pytest.raises(OSError, match="ends at"):
        read_weights(tmp_path / "weights", list(stored.values()))


def test_a_library_without_parameters_has_none(tmp_path: Path) -> None:
    assert read_weights(tmp_path, []) == []
