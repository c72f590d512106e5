"""Tokens that were guessed have the bits of steps, and leave what steps leave in the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.processor.conftest import of_processor
from export.processor.flat_attention import flat_attention
from export.processor.flat_attention_test import CASES, named
from export.processor.flat_rows import FlatHeads
from export.processor.guess_attention import guess_attention
from export.processor.prompt_attention_test import LENGTHS, Prompt
from export.processor.score_tiles import TILE


@pytest.mark.parametrize(("heads", "place"), CASES, ids=named)
def test_tokens_together_have_the_bits_of_steps(heads: FlatHeads, place: str) -> None:
    together, step = (of_processor(place, make, heads) for make in (guess_attention, flat_attention))
    for tokens in (1, 2, 8, TILE):
        for length in (*LENGTHS, TILE - 3):
            guesses = Prompt.drawn(heads, tokens, length)
            steps = replace(guesses, caches=[array[:1].copy() for array in guesses.caches])
            other = [array[1:].copy() for array in guesses.caches]
            out = guesses.run(together)
            for token in range(tokens):
                alone = steps.part(slice(token, token + 1), length + token).run(step)
                np.testing.assert_array_equal(out[token], alone[0], str((tokens, length, token)))
            for cache, one, untouched in zip(guesses.caches, steps.caches, other, strict=True):
                np.testing.assert_array_equal(cache[:1], one)
                np.testing.assert_array_equal(cache[1:], untouched)
    expected = guesses.formula()
    assert np.abs(out - expected).max() < 1e-6 * np.abs(expected).max()
