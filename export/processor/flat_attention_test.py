"""Attention over a flat cache: the formula over what lies in it, ONNX Runtime's operators, and what stays untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.processor.conftest import X86, AttentionCall, Kernel, of_processor
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
class Step(AttentionCall):
    """Inputs of one call, and caches of one more sequence than it has rows."""

    lengths: np.ndarray

    @classmethod
    def drawn(cls, heads: FlatHeads, lengths: Sequence[int] = LENGTHS) -> Step:
        inputs = cls.inputs(heads, len(lengths), len(lengths) + 1, CAPACITY)
        return cls(**inputs, lengths=np.array(lengths, np.int32))

    def run(self, kernel: Kernel) -> np.ndarray:
        out = np.full((len(self.lengths), self.heads.queries * self.heads.size), np.nan, np.float32)
        kernel(self.qkv, self.cos, self.sin, self.lengths, *self.scales, *self.caches, out)
        return out

    def formula(self) -> np.ndarray:
        """float64 attention over the caches as they lie after the call."""
        seen = self.lengths[:, None] + 1
        return np.concatenate([self.attended(slice(row, row + 1), row, seen[row]) for row in range(len(seen))])


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


@pytest.mark.parametrize("heads", [replace(THREE, cache="float16"), replace(EIGHT, cache="int8")], ids=named)
def test_numbers_do_not_depend_on_how_many_sums_there_are_at_once(heads: FlatHeads) -> None:
    one, other = (Step.drawn(heads).run(of_processor("v3", flat_attention, heads, sums)) for sums in (8, 16))
    np.testing.assert_array_equal(one, other)


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
