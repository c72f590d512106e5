"""Attention over a flat cache: the formula over what lies in it, ONNX Runtime's operators, and what stays untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.processor.conftest import X86, Kernel, drawn, of_processor
from export.processor.flat_attention import flat_attention
from export.processor.flat_rows import BYTES, FlatHeads, unsupported
from export.processor.score_tiles import BLOCK, TILE

CAPACITY = 3 * BLOCK + 5
LENGTHS = (TILE + 3, 0, CAPACITY - 1, 2 * BLOCK - 1)
"""Filled positions of each sequence: a tile begun, none, as many as there can be before one more, and whole blocks after."""

EACH = FlatHeads(4, 4, 64, 64, 64, 0.125, "")
THREE = FlatHeads(9, 3, 32, 32, 16, 0.2, "")
FOUR = FlatHeads(8, 2, 128, 136, 64, 0.1, "")
EIGHT = FlatHeads(8, 1, 20, 24, 12, 0.3, "")
"""By how many heads of queries share one of keys."""

ALL = [(EACH, cache, place) for cache in BYTES for place in X86]
ALL += [(THREE, "float16", "v4"), (FOUR, "float16", "v3"), (EIGHT, "float16", "v4")]
ALL += [(THREE, "int8", "v3"), (FOUR, "int8", "v4"), (EIGHT, "int8", "v3")]
CASES = [(replace(heads, cache=cache), place) for heads, cache, place in ALL]
"""And the processors that they are built for."""


def named(given: FlatHeads | str) -> str:
    return given if isinstance(given, str) else f"{given.group}-{given.cache}"


@dataclass
class Step:
    """Inputs of one call, and caches of one more sequence than it has rows."""

    heads: FlatHeads
    qkv: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    lengths: np.ndarray
    scales: Sequence[np.ndarray]
    caches: Sequence[np.ndarray]

    @classmethod
    def drawn(cls, heads: FlatHeads, lengths: Sequence[int] = LENGTHS) -> Step:
        count = len(lengths)
        angles = np.abs(drawn(1, count, heads.rotary // 2)) * 3
        shape = count + 1, heads.keys, CAPACITY, heads.width
        numbers, kinds = (drawn(2, *shape), drawn(3, *shape)), heads.cache
        scales = [np.abs(drawn(seed, heads.keys, heads.width)) * 0.02 + 0.01 for seed in (4, 5)]
        if kinds == "int8":
            numbers = tuple(np.clip(np.rint(n / s[:, None]), -128, 127) for n, s in zip(numbers, scales, strict=True))
        for array in numbers:
            array[..., heads.size :] = 0
        caches = [array.astype(kinds) for array in numbers]
        qkv = drawn(6, count, (heads.queries + 2 * heads.keys) * heads.size)
        flat = [scale.reshape(-1).astype(np.float32) for scale in scales] if kinds == "int8" else []
        return cls(heads, qkv, np.cos(angles), np.sin(angles), np.array(lengths, np.int32), flat, caches)

    def run(self, kernel: Kernel) -> np.ndarray:
        out = np.full((len(self.lengths), self.heads.queries * self.heads.size), np.nan, np.float32)
        kernel(self.qkv, self.cos, self.sin, self.lengths, *self.scales, *self.caches, out)
        return out

    def rotated(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float64 queries, keys and values (row, head, size)."""
        heads, half = self.heads, self.heads.rotary // 2
        x = self.qkv.reshape(len(self.qkv), -1, heads.size).astype(np.float64)
        cos, sin = (table[:, None].astype(np.float64) for table in (self.cos, self.sin))
        turned, split = x.copy(), (heads.queries, heads.queries + heads.keys)
        turned[..., :half] = x[..., :half] * cos - x[..., half : 2 * half] * sin
        turned[..., half : 2 * half] = x[..., half : 2 * half] * cos + x[..., :half] * sin
        return turned[:, : split[0]], turned[:, split[0] : split[1]], x[:, split[1] :]

    def widened(self, side: int, row: int, count: int) -> np.ndarray:
        """float64 (head of queries, position, size): what lies in a cache, times its scales."""
        heads = self.heads
        held = self.caches[side][row, :, :count].astype(np.float64)
        if self.scales:
            held = held * self.scales[side].reshape(heads.keys, 1, heads.width)
        return np.repeat(held[..., : heads.size], heads.group, 0)

    def formula(self) -> np.ndarray:
        """float64 attention over the caches as they lie after the call."""
        queries, rows = self.rotated()[0], []
        for row, length in enumerate(self.lengths):
            keys, values = (self.widened(side, row, length + 1) for side in (0, 1))
            scores = np.einsum("hd,hnd->hn", queries[row], keys) * self.heads.scale
            weights = np.exp(scores - scores.max(1, keepdims=True))
            rows.append(np.einsum("hn,hnd->hd", weights / weights.sum(1, keepdims=True), values).reshape(-1))
        return np.array(rows)


@pytest.mark.parametrize(("heads", "place"), CASES, ids=named)
def test_rows_attend_to_what_lies_in_the_cache_and_leave_the_rest_of_it_alone(heads: FlatHeads, place: str) -> None:
    step = Step.drawn(heads)
    before = [array.copy() for array in step.caches]
    for array in step.caches:
        if heads.cache != "int8":
            for row, length in enumerate(step.lengths):
                # what no position fills is no number
                array[row, :, length:] = np.nan
    out = step.run(of_processor(place, flat_attention, heads))
    expected = step.formula()
    assert np.abs(out - expected).max() < 1e-6 * np.abs(expected).max()
    _, keys, values = step.rotated()
    for side, wanted in enumerate((keys, values)):
        cache = step.caches[side]
        for row, length in enumerate(step.lengths):
            kept = cache[row, :, length].astype(np.float64)
            assert (kept[:, heads.size :] == 0).all()
            if heads.cache == "int8":
                scales = step.scales[side].reshape(heads.keys, -1)[:, : heads.size]
                codes = np.clip(np.rint(wanted[row] / scales), -128, 127)
                # a number on a boundary may go to the next byte
                assert (kept[:, : heads.size] != codes).mean() < 0.01 and np.abs(kept[:, : heads.size] - codes).max() <= 1
            else:
                bound = {"float16": 2.0**-10, "float32": 3e-7}[heads.cache]
                np.testing.assert_allclose(kept[:, : heads.size], wanted[row], rtol=bound, atol=3e-7)
            cache[row, :, length] = before[side][row, :, length]
            if heads.cache != "int8":
                assert np.isnan(cache[row, :, length + 1 :]).all()
                cache[row, :, length:] = before[side][row, :, length:]
        np.testing.assert_array_equal(cache, before[side])


def operators(heads: FlatHeads, capacity: int = CAPACITY) -> onnxruntime.InferenceSession:
    """RotaryEmbedding of queries and keys, and GroupQueryAttention, as `export.backends.onnx.kernels` puts them together."""
    kinds = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int8": TensorProto.INT8}
    held, value, quantised = kinds[heads.cache], helper.make_tensor_value_info, heads.cache == "int8"
    wide = {"q": heads.queries, "k": heads.keys, "v": heads.keys}
    inputs = [value(name, TensorProto.FLOAT, ["n", "t", count * heads.size]) for name, count in wide.items()]
    inputs += [value(name, TensorProto.FLOAT, ["n", "t", heads.rotary // 2]) for name in ("cos", "sin")]
    inputs += [value(name, held, ["n", heads.keys, capacity, heads.width]) for name in ("past_key", "past_value")]
    inputs += [value("last", TensorProto.INT32, ["n"]), value("total", TensorProto.INT32, [1])]
    nodes, computed = [], TensorProto.FLOAT if quantised else held
    for name in "qk":
        turning: dict[str, Any] = {
            "num_heads": wide[name],
            "interleaved": 0,
            "rotary_embedding_dim": heads.rotary % heads.size,
        }
        nodes.append(helper.make_node("RotaryEmbedding", [name, "cos", "sin"], [f"{name}_turned"], **turning))
    for name, given in (("q", "q_turned"), ("k", "k_turned"), ("v", "v")):
        nodes.append(helper.make_node("Cast", [given], [f"{name}_cast"], to=computed))
    names = ["q_cast", "k_cast", "v_cast", "past_key", "past_value", "last", "total"]
    attributes: dict[str, Any] = {
        "num_heads": heads.queries,
        "kv_num_heads": heads.keys,
        "scale": heads.scale,
        "do_rotary": 0,
    }
    if quantised:
        names += [""] * 5 + ["key_scale", "value_scale"]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        inputs += [value(name, TensorProto.FLOAT, [heads.keys, 1, heads.width]) for name in names[-2:]]
    nodes.append(
        helper.make_node("GroupQueryAttention", names, ["out", "key", "value"], domain="com.microsoft", **attributes)
    )
    outputs = [value("out", computed, None), value("key", held, None), value("value", held, None)]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "step", inputs, outputs), opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString())


@pytest.mark.parametrize(("heads", "place"), [case for case in CASES if case[0].width == case[0].size], ids=named)
def test_numbers_and_caches_are_those_of_onnx_runtime(heads: FlatHeads, place: str) -> None:
    """In float16 its queries, scores and sums are rounded too."""
    cache, bound = heads.cache, 2e-3 if heads.cache == "float16" else 2e-6
    step, count = Step.drawn(heads), len(LENGTHS)
    split = np.cumsum([heads.queries, heads.keys]) * heads.size
    fed = dict(zip("qkv", (part[:, None] for part in np.split(step.qkv, split, 1)), strict=True))
    fed |= {
        "cos": step.cos[:, None],
        "sin": step.sin[:, None],
        "last": step.lengths,
        "total": np.array([max(LENGTHS) + 1], np.int32),
    }
    fed |= dict(zip(("past_key", "past_value"), (array[:count].copy() for array in step.caches), strict=True))
    if step.scales:
        scales = (scale.reshape(heads.keys, 1, heads.width) for scale in step.scales)
        fed |= dict(zip(("key_scale", "value_scale"), scales, strict=True))
    theirs, *kept = operators(heads).run(None, fed)
    out = step.run(of_processor(place, flat_attention, heads))
    assert np.abs(out - theirs[:, 0]).max() < bound * np.abs(theirs).max()
    for ours, written in zip(step.caches, kept, strict=True):
        for row, length in enumerate(LENGTHS):
            one, other = (array[row, :, : length + 1].astype(np.float64) for array in (ours, written))
            # where float32 numbers differ in their last bit, rounded ones may be neighbours
            step_width = (
                1 if cache == "int8" else np.maximum(np.abs(other), 1e-4) * (2.0**-10 if cache == "float16" else 3e-7)
            )
            assert (np.abs(one - other) <= step_width).all() and (one != other).mean() < (0.01 if cache != "float32" else 1)


def test_large_scores_and_rows_in_any_company_are_right() -> None:
    heads = replace(THREE, scale=300.0, cache="float16")
    step = Step.drawn(heads)
    kernel = of_processor("v3", flat_attention, heads)
    out = step.run(kernel)
    # scores of thousands have no more digits behind the point than float32 leaves them
    assert np.abs(out - step.formula()).max() < 1e-2
    for row in range(len(LENGTHS)):
        one = slice(row, row + 1)
        alone = replace(
            step,
            qkv=step.qkv[one],
            cos=step.cos[one],
            sin=step.sin[one],
            lengths=step.lengths[one],
            caches=[array[one] for array in step.caches],
        )
        np.testing.assert_array_equal(alone.run(kernel)[0], out[row])


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (FlatHeads(4, 4, 64, 64, 64, 0.1, "bfloat16"), "the cache is bfloat16"),
        (FlatHeads(4, 3, 64, 64, 64, 0.1, "int8"), "do not share"),
        (FlatHeads(4, 4, 64, 64, 33, 0.1, "int8"), "33 of 64 channels"),
        (FlatHeads(4, 4, 36, 36, 36, 0.1, "int8"), "36 channels in the cache"),
    ],
)
def test_heads_without_a_kernel_are_told_apart(heads: FlatHeads, reason: str) -> None:
    assert reason in unsupported(heads)
    with pytest.raises(ValueError, match="no attention kernel"):
        flat_attention(heads)
    assert not any(unsupported(heads) for heads, _ in CASES)
