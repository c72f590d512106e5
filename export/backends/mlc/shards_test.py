"""Shard plan and index against the writer in apache-tvm, file by file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tvm.contrib import tvmjs

from export.backends.mlc import shards
from export.backends.mlc.parameters import bfloat16_bits
from export.backends.mlc.shards import HALVED, StoredTensor


def stored(name: str, array: np.ndarray) -> StoredTensor:
    data = bfloat16_bits(array).tobytes() if array.dtype == np.float32 else array.tobytes()
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    return StoredTensor(name, array.shape, str(array.dtype), HALVED, lambda: (piece for piece in pieces))


@pytest.mark.parametrize("seed", range(6))
def test_same_files_as_tvm(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(shards, "CAP", 1 << 20)
    rng = np.random.default_rng(seed)
    arrays = {}
    for number in range(24):
        rows = int(rng.choice([1, 300, 4000, 32768, 65536, 131072, 300000]))
        dtype = rng.choice(["uint32", "float16", "float32"])
        arrays[f"t{number}"] = (rng.standard_normal((rows, 2)) * 1e3).astype(dtype)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    ours.mkdir()
    elements = sum(array.size for array in arrays.values())
    total = float(sum(array.nbytes for array in arrays.values()))
    metadata = {"ParamSize": len(arrays), "ParamBytes": total, "BitsPerParam": total * 8.0 / elements}
    tvmjs.dump_tensor_cache(arrays, str(theirs), meta_data=metadata, shard_cap_mb=1, show_progress=False)

    plan = shards.plan_shards([stored(name, array) for name, array in arrays.items()])
    for shard in reversed(plan):  # any order gives the same files
        shards.write_shard(ours, shard)
    shards.write_index(ours, shards.index(ours, plan, elements), old_name=False)
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in theirs.iterdir():
        assert (ours / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_old_index_name_holds_the_same(tmp_path):
    plan = shards.plan_shards([stored("a", np.ones((4, 4), np.float16))])
    shards.write_shard(tmp_path, plan[0])
    shards.write_index(tmp_path, shards.index(tmp_path, plan, 16))
    assert (tmp_path / "ndarray-cache.json").read_bytes() == (tmp_path / "tensor-cache.json").read_bytes()
    assert not (tmp_path / "tensor-cache-b16.json").exists()
    assert json.loads((tmp_path / "tensor-cache.json").read_text())["metadata"]["BitsPerParam"] == 16.0


def test_a_source_that_yields_too_little_leaves_no_shard(tmp_path):
    short = StoredTensor("a", (4,), "float16", HALVED, lambda: (piece for piece in [b"\0\0"]))
    with pytest.raises(AssertionError, match="2 bytes written, 8 planned"):
        shards.write_shard(tmp_path, shards.plan_shards([short])[0])
    assert not (tmp_path / "params_shard_0.bin").exists()


def test_bfloat16_rounds_to_even_and_truncates_beyond_its_range():
    values = np.array([1.0, 1.00390625, 1.01171875, -1.00390625, np.finfo(np.float32).max, 0.0], np.float32)
    bits = bfloat16_bits(values).astype(np.uint32) << 16
    assert bits.view(np.float32).tolist()[:4] == [1.0, 1.0, 1.015625, -1.0]
    assert math.isfinite(bits.view(np.float32)[4])
