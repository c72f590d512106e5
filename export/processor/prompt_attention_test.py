"""Attention of a prompt: the formula over what lies in the cache, ONNX Runtime's operators, and what stays untouched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from export.processor.conftest import X86, AttentionCall, Kernel, drawn, of_processor
from export.processor.flat_attention import flat_attention
from export.processor.flat_attention_test import CASES, EACH, EIGHT, FOUR, THREE, named, operators
from export.processor.flat_rows import FlatHeads
from export.processor.prompt_attention import most_of, prompt_attention
from export.processor.register_tiles import BLOCK, ROWS

WORDS = {"v3": False, "v4": True}
"""Which products have 16 bits, as in libraries."""

BOUND = {"v3": 1e-6, "v4": 1e-3}
"""Of the largest output."""

TOKENS = (1, 2, 3, 7, 16, 33, 130)
LENGTHS = (0, 5, BLOCK, 200)
CAPACITY = max(LENGTHS) + max(TOKENS) + 3


@dataclass
class Prompt(AttentionCall):
    """Inputs of one call behind ``length`` positions; the caches have one more sequence."""

    length: int

    @classmethod
    def drawn(cls, heads: FlatHeads, tokens: int, length: int) -> Prompt:
        """What is no position of the first sequence holds no number, where the cache can say so."""
        inputs = cls.inputs(heads, tokens, 2, CAPACITY)
        if heads.cache != "int8":
            for array in inputs["caches"]:
                array[0, :, length:] = np.nan
        return cls(**inputs, length=length)

    @property
    def written(self) -> slice:
        return slice(self.length, self.length + len(self.qkv))

    def part(self, tokens: slice, length: int) -> Prompt:
        return replace(self, length=length, qkv=self.qkv[tokens], cos=self.cos[tokens], sin=self.sin[tokens])

    def run(self, kernel: Kernel, told: int | None = None) -> np.ndarray:
        out = np.full((told or len(self.qkv), self.heads.queries * self.heads.size), np.nan, np.float32)
        kernel(self.qkv, self.cos, self.sin, np.array([self.length], np.int32), *self.scales, *self.caches, out)
        return out

    def formula(self) -> np.ndarray:
        """float64 attention over the first sequence of the caches as they lie after the call."""
        tokens = np.arange(len(self.qkv))
        return self.attended(slice(None), 0, self.length + tokens + 1)


@pytest.mark.parametrize(("heads", "place"), CASES, ids=named)
def test_tokens_attend_to_what_lies_before_them_and_leave_the_rest_of_the_cache_alone(heads: FlatHeads, place: str) -> None:
    kernel = of_processor(place, prompt_attention, heads, WORDS[place])
    for tokens in TOKENS:
        for length in LENGTHS:
            prompt = Prompt.drawn(heads, tokens, length)
            before = [array.copy() for array in prompt.caches]
            out, expected = prompt.run(kernel), prompt.formula()
            assert np.abs(out - expected).max() < BOUND[place] * np.abs(expected).max(), (tokens, length)
            for side, wanted in enumerate(array.transpose(1, 0, 2) for array in prompt.rotated()[1:]):
                kept = prompt.caches[side][0, :, prompt.written].astype(np.float64)
                assert (kept[..., heads.size :] == 0).all()
                kept = kept[..., : heads.size]
                if heads.cache == "int8":
                    scales = prompt.scales[side].reshape(heads.keys, 1, -1)[..., : heads.size]
                    codes = np.clip(np.rint(wanted / scales), -128, 127)
                    # a number on a boundary may go to the next byte
                    assert (kept != codes).mean() < 0.01 and np.abs(kept - codes).max() <= 1
                else:
                    bound = {"float16": 2.0**-10, "float32": 3e-7}[heads.cache]
                    np.testing.assert_allclose(kept, wanted, rtol=bound, atol=3e-7)
                prompt.caches[side][0, :, prompt.written] = before[side][0, :, prompt.written]
                np.testing.assert_array_equal(prompt.caches[side], before[side])


@pytest.mark.parametrize(("heads", "place"), [case for case in CASES if case[0].width == case[0].size], ids=named)
def test_numbers_and_caches_are_those_of_onnx_runtime(heads: FlatHeads, place: str) -> None:
    """In float16 its queries, scores and sums are rounded too. A call of its gets many tokens behind none alone."""
    cache, bound = heads.cache, 3e-3 if heads.cache == "float16" else max(3e-6, BOUND[place])
    session = operators(heads, CAPACITY)
    for tokens, length in ((1, 200), (7, 0), (33, 0), (130, 0), (33, 64)):
        prompt = Prompt.drawn(heads, tokens, length)
        split = np.cumsum([heads.queries, heads.keys]) * heads.size
        fed = dict(zip("qkv", (part[None] for part in np.split(prompt.qkv, split, 1)), strict=True))
        fed |= {"cos": prompt.cos[None], "sin": prompt.sin[None], "last": np.array([prompt.written.stop - 1], np.int32)}
        fed["total"] = np.array([prompt.written.stop], np.int32)
        pasts = (np.nan_to_num(array[:1].copy()) for array in prompt.caches)
        fed |= dict(zip(("past_key", "past_value"), pasts, strict=True))
        if prompt.scales:
            scales = (scale.reshape(heads.keys, 1, heads.width) for scale in prompt.scales)
            fed |= dict(zip(("key_scale", "value_scale"), scales, strict=True))
        theirs, *kept = session.run(None, fed)
        out = prompt.run(of_processor(place, prompt_attention, heads, WORDS[place]))
        assert np.abs(out - theirs[0]).max() < bound * np.abs(theirs).max(), (tokens, length)
        for ours, written in zip(prompt.caches, kept, strict=True):
            one, other = (array[0, :, : prompt.written.stop].astype(np.float64) for array in (ours, written))
            # where float32 numbers differ in their last bit, rounded ones may be neighbours
            relative = {"float16": 2.0**-10, "float32": 3e-7, "int8": 0}[cache]
            width = 1 if cache == "int8" else np.maximum(np.abs(other), 1e-4) * relative
            assert (np.abs(one - other) <= width).all() and (one != other).mean() < (0.01 if cache != "float32" else 1.1)


@pytest.mark.parametrize(("heads", "cache"), [(EACH, "float16"), (THREE, "int8"), (EIGHT, "float16")])
def test_one_token_has_the_numbers_of_a_step(heads: FlatHeads, cache: str) -> None:
    heads = replace(heads, cache=cache)
    for length in LENGTHS:
        one, other = (Prompt.drawn(heads, 1, length) for _ in range(2))
        out = one.run(of_processor("v3", prompt_attention, heads))
        step = other.run(of_processor("v3", flat_attention, heads))
        assert np.abs(out - step).max() < 1e-6 * np.abs(step).max()
        for ours, theirs in zip(one.caches, other.caches, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("heads", "cache", "place"), [(EACH, "float16", "v3"), (EACH, "float16", "v4"), (THREE, "int8", "v3")]
)
def test_the_numbers_of_a_token_are_the_same_in_any_company(heads: FlatHeads, cache: str, place: str) -> None:
    heads = replace(heads, cache=cache)
    kernel, whole = of_processor(place, prompt_attention, heads, WORDS[place]), Prompt.drawn(heads, 130, 5)
    parts = replace(whole, caches=[array.copy() for array in whole.caches])
    out, begin = whole.run(kernel), 0
    for many in (1, min(most_of(heads, WORDS[place]), 100), 3, 7, 130):
        tokens = slice(begin, min(begin + many, 130))
        np.testing.assert_array_equal(parts.part(tokens, 5 + begin).run(kernel), out[tokens])
        begin += many
    for one, other in zip(whole.caches, parts.caches, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("heads", "cache", "place"), [(EACH, "float16", "v4"), (THREE, "int8", "v4"), (FOUR, "float16", "v3")]
)
def test_the_last_token_alone_has_the_numbers_it_has_among_all(heads: FlatHeads, cache: str, place: str) -> None:
    heads = replace(heads, cache=cache)
    every, last = (of_processor(place, prompt_attention, heads, WORDS[place], alone) for alone in (False, True))
    for tokens, length in ((1, 0), (2, BLOCK), (33, 5), (130, 200)):
        one, other = (Prompt.drawn(heads, tokens, length) for _ in range(2))
        np.testing.assert_array_equal(one.run(last, 1), other.run(every)[-1:])
        for ours, theirs in zip(one.caches, other.caches, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("heads", [EACH, FOUR], ids=named)
@pytest.mark.parametrize("place", X86)
def test_infinity_in_a_token_reaches_no_further_back_than_its_panel(heads: FlatHeads, place: str) -> None:
    heads = replace(heads, cache="float16")
    kernel, late = of_processor(place, prompt_attention, heads, WORDS[place]), 20
    for length in (0, 5, BLOCK - late):
        finite, infinite = (Prompt.drawn(heads, 33, length) for _ in range(2))
        infinite.qkv = finite.qkv.copy()
        infinite.qkv[late, heads.queries * heads.size :] = np.inf
        out, expected = infinite.run(kernel), finite.run(kernel)
        sound = late if WORDS[place] else late - (ROWS - 1)
        np.testing.assert_array_equal(out[:sound], expected[:sound])
        assert np.isnan(out[late:]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", [1, 2])
def test_in_16_bits_a_key_or_a_value_that_is_no_number_spoils_those_that_see_it_alone(side: int, value: float) -> None:
    heads = replace(THREE, cache="float32")
    kernel, late = of_processor("v4", prompt_attention, heads, True), 20
    sound, spoilt = (Prompt.drawn(heads, 33, 5) for _ in range(2))
    spoilt.qkv = sound.qkv.copy()
    spoilt.qkv[late, (heads.queries + (side - 1) * heads.keys) * heads.size] = value
    out, expected = spoilt.run(kernel), sound.run(kernel)
    np.testing.assert_array_equal(out[:late], expected[:late])
    group = heads.group * heads.size
    assert np.isnan(out[late:, :group]).any(1).all()
    np.testing.assert_array_equal(out[late:, group:], expected[late:, group:])


def test_in_16_bits_a_first_token_with_nearly_all_weight_and_a_small_value_leaves_the_others_their_bits() -> None:
    heads = replace(EACH, cache="float16")
    prompt = Prompt.drawn(heads, 130, 0)
    prompt.cos[:], prompt.sin[:] = 1, 0
    queries, keys = heads.queries * heads.size, heads.keys * heads.size
    prompt.qkv[:, :queries] = 1
    prompt.qkv[:, queries : queries + keys] = drawn(7, 130, keys) * 0.01
    prompt.qkv[0, queries : queries + keys] = 1.6
    prompt.qkv[0, queries + keys :] *= 1e-3
    expected = prompt.run(of_processor("v4", prompt_attention, heads, True)), prompt.formula()
    # e^12.8 is more than the 13 bits of a weight
    assert np.abs(expected[0] - expected[1])[64:].max() < 3e-3 * np.abs(expected[1])[64:].max()


def test_large_scores_are_right() -> None:
    heads = replace(THREE, scale=300.0, cache="float16")
    prompt = Prompt.drawn(heads, 33, 64)
    # scores of thousands have no more digits behind the point than float32 leaves them
    assert np.abs(prompt.run(of_processor("v3", prompt_attention, heads)) - prompt.formula()).max() < 1e-2


def test_heads_without_a_kernel_are_told_apart() -> None:
    with pytest.raises(ValueError, match="no attention kernel: 33 of 64 channels"):
        prompt_attention(FlatHeads(4, 4, 64, 64, 33, 0.1, "int8"))
