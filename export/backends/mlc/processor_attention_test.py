"""Attention and rotation on a processor: the formula's numbers and those of TVM's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.relax.frontend.nn.llm.position_embedding import llama_rope_with_position_map
from tvm.target import Target

from export.backends.mlc.library import TARGETS
from export.backends.mlc.processor_attention import (
    DECODE,
    AttendOnProcessor,
    decode_kernel,
    paged_kernel,
    ragged_kernel,
)
from export.backends.mlc.processor_rotation import RotateOnProcessor, rotation_kernel
from export.processor.online_softmax import BLOCK, LANES, PAGE, Heads

LENGTHS = (1, PAGE, 0, BLOCK + PAGE + 3)
"""Positions of each sequence: a page begun, one filled, none, and more than one block."""

BOUNDS = {"float32": 2e-6, "float16": 2e-3}


def built(kernel: tirx.PrimFunc) -> Any:
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        module = IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
        return tvm.compile(module, target=Target(TARGETS["x86_64"]))["kernel"]


def run(kernel: Any, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], *scalars: float) -> list[np.ndarray]:
    given, made = ([tvm.runtime.tensor(array) for array in arrays] for arrays in (inputs, outputs))
    kernel(*given, *made, *scalars)
    return [tensor.numpy() for tensor in made]


def attention(q: np.ndarray, kv: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """One row (heads, size) to keys and values (2, positions, key heads, size): values, and base-2 log-sum-exps."""
    k, v = np.repeat(kv.astype(np.float64), q.shape[0] // kv.shape[2], 2)
    weights = np.exp(np.einsum("hd,nhd->hn", q.astype(np.float64), k) * scale)
    sums = weights.sum(1)
    return np.einsum("hn,nhd->hd", weights / sums[:, None], v), np.log2(sums)


class Cache:
    """Sequences of LENGTHS positions in pages that lie in no order; what no position fills is no number."""

    def __init__(self, heads: Heads) -> None:
        self.numbers = np.random.default_rng(heads.size)
        self.heads = heads
        counts = [-(-length // PAGE) for length in LENGTHS]
        self.indptr = np.cumsum([0, *counts]).astype(np.int32)
        self.values = self.numbers.permutation(sum(counts) + 2).astype(np.int32)[: sum(counts)]
        self.last = np.array([(length - 1) % PAGE + 1 if length else 0 for length in LENGTHS], np.int32)
        self.pages = np.full((sum(counts) + 2, 2, heads.keys, PAGE, heads.size), np.nan, heads.dtype)
        self.filled = [self.drawn(2, length, heads.keys, heads.size) for length in LENGTHS]
        for sequence, rows in enumerate(self.filled):
            for at in range(rows.shape[1]):
                page = self.values[self.indptr[sequence] + at // PAGE]
                self.pages[page, :, :, at % PAGE] = rows[:, at]

    def drawn(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape).astype(self.heads.dtype)

    def outputs(self, rows: int) -> list[np.ndarray]:
        return [np.zeros((rows, self.heads.queries, self.heads.size), self.heads.dtype), self.sums(rows)]

    def sums(self, rows: int) -> np.ndarray:
        return np.zeros((rows, self.heads.queries), np.float32)


HEADS = [Heads(4, 4, 16, "float32"), Heads(6, 2, 72, "float16")]


@pytest.mark.parametrize("heads", HEADS, ids=["each", "shared"])
def test_one_row_of_each_sequence_sees_all_its_positions(heads: Heads) -> None:
    cache, scale = Cache(heads), heads.size**-0.5
    q, batch = cache.drawn(len(LENGTHS), heads.queries, heads.size), np.zeros(len(LENGTHS), np.int32)
    inputs = (q, cache.pages, cache.indptr, cache.values, cache.last, batch, batch)
    output, sums = run(built(decode_kernel(heads)), inputs, cache.outputs(len(LENGTHS)), 0, 1.0, 1e4, scale)
    for sequence, length in enumerate(LENGTHS):
        if length == 0:
            assert (output[sequence] == 0).all() and (sums[sequence] == -5e4).all()
            continue
        values, expected = attention(q[sequence], cache.filled[sequence], scale)
        assert np.abs(output[sequence] - values).max() < BOUNDS[heads.dtype]
        assert np.abs(sums[sequence] - expected).max() < 1e-5


@pytest.mark.parametrize("heads", HEADS, ids=["each", "shared"])
@pytest.mark.parametrize("causal", [0, 1])
def test_rows_of_a_prompt_see_the_positions_up_to_their_own(heads: Heads, causal: int) -> None:
    cache, scale, own = Cache(heads), heads.size**-0.5, (1, 5, 0, 20)
    q_indptr = np.cumsum([0, *own]).astype(np.int32)
    q, batch, rows = cache.drawn(sum(own), heads.queries, heads.size), np.zeros(4, np.int32), np.zeros(sum(own), np.int32)
    inputs = (q, q_indptr, cache.pages, cache.indptr, cache.values, cache.last, batch, rows)
    paged = run(built(paged_kernel(heads)), inputs, cache.outputs(sum(own)), causal, 0, 1.0, 1e4, scale)
    k, v = np.concatenate(cache.filled, axis=1)
    among = (q, q_indptr, k, v, np.cumsum([0, *LENGTHS]).astype(np.int32), rows, batch)
    ragged = run(built(ragged_kernel(heads)), among, cache.outputs(sum(own)), causal, 0, 1.0, 1e4, scale)
    for sequence, count in enumerate(own):
        for index in range(count):
            seen = LENGTHS[sequence] - (count - index - 1) * causal
            row = q_indptr[sequence] + index
            values, expected = attention(q[row], cache.filled[sequence][:, :seen], scale)
            for output, sums in (paged, ragged):
                assert np.abs(output[row] - values).max() < BOUNDS[heads.dtype]
                assert np.abs(sums[row] - expected).max() < 1e-5


def test_a_cache_that_rotates_keys_when_they_are_read_is_refused() -> None:
    cache = Cache(HEADS[0])
    batch = np.zeros(len(LENGTHS), np.int32)
    inputs = (cache.drawn(4, 4, 16), cache.pages, cache.indptr, cache.values, cache.last, batch, batch)
    with pytest.raises(Exception, match="does not rotate keys"):
        run(built(decode_kernel(HEADS[0])), inputs, cache.outputs(4), 1, 1.0, 1e4, 0.25)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rotation_is_that_of_tvm_bit_by_bit(dtype: str) -> None:
    spec: Any = SimpleNamespace(heads=4, kv_heads=2, head_dim=24, rope=SimpleNamespace(dim=24, theta=10000.0))
    qkv = np.random.default_rng(0).standard_normal((3, 8, 24)).astype(dtype)
    positions = np.array([0, 7, 1023], np.int32)
    kernels = built(rotation_kernel(spec, dtype)), built(llama_rope_with_position_map(10000.0, 1, 24, 4, 2, dtype, {}, 24))
    for rotated in (1, 0):
        outputs = [np.zeros((3, heads, 24), dtype) for heads in (4, 2, 2)]
        ours, theirs = (run(kernel, (qkv, positions), outputs, rotated) for kernel in kernels)
        assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_narrow_heads_keep_the_kernels_of_tvm() -> None:
    heads = HEADS[0]
    counts = {"batch_decode_paged_kv_cpu": 13, "batch_prefill_paged_kv_cpu": 15, "batch_prefill_ragged_kv": 14}
    made = {
        name: tirx.PrimFunc([tirx.Var(f"x{i}", "int32") for i in range(n)], tirx.Evaluate(0)) for name, n in counts.items()
    }
    module = IRModule(made)
    for size, replaced in ((LANES, True), (LANES + 4, False)):
        spec: Any = SimpleNamespace(heads=heads.queries, kv_heads=heads.keys, head_dim=size)
        after = AttendOnProcessor(spec, "float32")(module)
        assert after[DECODE].same_as(module[DECODE]) is not replaced


def test_modules_without_the_kernels_are_refused() -> None:
    module, spec = relax.transform.LegalizeOps()(IRModule()), HEADS[0]
    whole: Any = SimpleNamespace(heads=spec.queries, kv_heads=spec.keys, head_dim=spec.size)
    for one in (AttendOnProcessor(whole, "float32"), RotateOnProcessor(whole, "float32")):
        with pytest.raises(AssertionError, match="expected"):
            one(module)
