"""Attention over a cache of bytes in products of bytes: the formula, at the borders of blocks and of what fits 32 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from export.processor.byte_tiles import BLOCK, HELD, WIDEST, fits
from export.processor.conftest import Kernel, of_processor
from export.processor.flat_attention import flat_attention
from export.processor.flat_attention_test import Step, named
from export.processor.flat_rows import FlatHeads
from export.processor.guess_attention import guess_attention
from export.processor.prompt_attention_test import Prompt
from export.processor.score_tiles import SUMS, TILE

ONE = FlatHeads(3, 3, 64, 64, 64, 0.125, "int8")
THREE = FlatHeads(6, 2, 96, 104, 64, 0.1, "int8")
MANY = FlatHeads(HELD, 1, 128, 128, 128, 0.08, "int8")
CASES = [ONE, THREE, MANY]
"""By how many heads of queries share one of keys: fewer than `HELD`, and as many."""

CAPACITY = 3 * BLOCK
LENGTHS = (0, 2, TILE - 1, 2 * TILE - 2, 2 * TILE - 1, BLOCK - 1, BLOCK + 2 * TILE - 2, BLOCK + 2 * TILE - 1, CAPACITY - 1)
"""A whole block with too few positions behind it for another one, and with enough, among them."""

BOUND = 2e-4
"""Of the largest number: queries and weights have 16 bits, and scores are exponents."""


def step_of(heads: FlatHeads, lengths: Sequence[int] = LENGTHS) -> Step:
    inputs = Step.inputs(heads, len(lengths), len(lengths) + 1, CAPACITY)
    return Step(**inputs, lengths=np.array(lengths, np.int32))


def kernel(heads: FlatHeads) -> Kernel:
    return of_processor("v4", flat_attention, heads, SUMS, True)


@pytest.mark.parametrize("heads", CASES, ids=named)
def test_rows_attend_to_what_lies_in_the_cache(heads: FlatHeads) -> None:
    step = step_of(heads)
    out, expected = step.run(kernel(heads)), step.formula()
    assert np.abs(out - expected).max() < BOUND * np.abs(expected).max()
    # keys and values are kept as they are where products are of float32
    other = step_of(heads)
    other.run(of_processor("v4", flat_attention, heads))
    for ours, theirs in zip(step.caches, other.caches, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_of_queries_has_its_bits_whoever_shares_its_keys() -> None:
    step, alone = step_of(MANY), replace(MANY, queries=1)
    out = step.run(kernel(MANY)).reshape(len(LENGTHS), HELD, -1)
    parts = step.qkv.reshape(len(LENGTHS), HELD + 2, -1)
    for member in range(HELD):
        own = parts[:, [member, HELD, HELD + 1]].reshape(len(LENGTHS), -1)
        one = replace(step, heads=alone, qkv=own, caches=[array.copy() for array in step.caches])
        np.testing.assert_array_equal(one.run(kernel(alone)), out[:, member])


def test_tokens_together_have_the_bits_of_steps() -> None:
    together, alone = of_processor("v4", guess_attention, ONE, SUMS, True), kernel(ONE)
    for length in (0, TILE - 3, 61):
        guesses = Prompt.drawn(ONE, 6, length)
        steps = replace(guesses, caches=[array[:1].copy() for array in guesses.caches])
        out = guesses.run(together)
        for token in range(6):
            np.testing.assert_array_equal(steps.part(slice(token, token + 1), length + token).run(alone)[0], out[token])


def test_a_first_position_with_nearly_all_weight_leaves_the_others_their_bits() -> None:
    """And without a value, as that of many texts is."""
    heads = replace(ONE, queries=1, keys=1)
    step = step_of(heads, (3 * BLOCK // 2,))
    query = step.rotated()[0][0, 0] * step.scales[0] * heads.scale
    others = np.exp(step.caches[0][0, 0, 1 : step.lengths[0]].astype(np.float64) @ query).sum()
    # the others have a hundredth of it
    step.caches[0][0, 0, 0] = np.rint(np.sign(query) * np.log(100 * others) / np.abs(query).sum())
    step.caches[1][:, :, 0] = 0
    out, expected = step.run(kernel(heads)), step.formula()
    assert np.exp(step.caches[0][0, 0, 0] @ query) > 50 * others
    assert np.abs(out - expected).max() < 2e-3 * np.abs(expected).max()


def test_large_scores_are_right() -> None:
    heads = replace(ONE, scale=30.0)
    step = step_of(heads)
    assert np.abs(step.run(kernel(heads)) - step.formula()).max() < 3e-3


def test_the_largest_sums_fit() -> None:
    step = step_of(ONE)
    step.qkv[:, : 3 * ONE.size] = -1
    for cache, scales in zip(step.caches, step.scales, strict=True):
        cache[:] = -128
        scales[:] = 0.01
    out, expected = step.run(kernel(ONE)), step.formula()
    assert np.abs(out - expected).max() < BOUND * np.abs(expected).max()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_row_and_head(number: float) -> None:
    step = step_of(ONE)
    whole = step.run(kernel(ONE)).reshape(len(LENGTHS), 3, 64)
    step = step_of(ONE)
    step.qkv[4, 64 + 5] = number
    out = step.run(kernel(ONE)).reshape(len(LENGTHS), 3, 64)
    assert np.isnan(out[4, 1]).all()
    out[4, 1] = whole[4, 1]
    np.testing.assert_array_equal(out, whole)


def test_zeros_are_a_query() -> None:
    step = step_of(ONE)
    step.qkv[:, : 3 * 64] = 0
    assert np.abs(step.run(kernel(ONE)) - step.formula()).max() < 1e-5


@pytest.mark.parametrize("heads", [replace(ONE, size=20, width=24, rotary=20), replace(ONE, cache="float16")])
def test_other_heads_are_multiplied_as_before(heads: FlatHeads) -> None:
    assert not fits(24) and not fits(WIDEST + 32) and fits(WIDEST)
    floats, words = (step_of(heads).run(of_processor("v4", flat_attention, heads, SUMS, words)) for words in (False, True))
    np.testing.assert_array_equal(floats, words)
