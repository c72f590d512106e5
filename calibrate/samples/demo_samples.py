"""Samples of a demo checkpoint's own kind: one question about one drawn picture, of every kind that it has learnt.

A demo knows nothing else: on the general set it is unsure of every other token, and codes chosen there serve answers that
nobody asks it for (docs/results/calibration.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from calibrate.samples.data import Sample
from runtime_py.preprocess.base import Message, Processor, TokenizerLike

if TYPE_CHECKING:
    from export.demo.questions import Question
    from export.demo.recipes.base import Recipe

SAMPLED = 20_240_205
"""Seed of the pictures, none of which any table, search or check asks about (calibrate.evaluation.evaluate)."""


def own_samples(recipe: Recipe, count: int, seed: int, text_only: bool = False) -> Iterator[Sample]:
    """``count`` samples; kinds of question take turns, and languages after each round of them. Sample i depends on the seed
    and i alone.
    """
    from export.demo.pictures import draw, sample_scene, sample_size
    from export.demo.questions import KINDS, LANGUAGES, ask

    for number in range(count):
        rng = np.random.default_rng([SAMPLED, seed, number])
        scene = sample_scene(rng) if recipe.digits else sample_scene(rng, digits=0.0)
        picture = draw(scene, *sample_size(rng, recipe.side))
        language = LANGUAGES[number // len(KINDS) % len(LANGUAGES)]
        turn = number % len(KINDS)
        asked = (ask(scene, kind, language, rng) for kind in KINDS[turn:] + KINDS[:turn])
        yield _sample(next(question for question in asked if question is not None), picture, text_only)


def answer_cutter(recipe: Recipe, processor: Processor, tokenizer: TokenizerLike) -> Callable[[str], list[int]]:
    """From an answer to the tokens that the demo says it with."""
    from export.demo.dialogues import DialogueWriter

    writer = DialogueWriter(processor, tokenizer, stop=0, before=recipe.before, lead=recipe.lead)
    return lambda answer: writer.answer_ids(answer)[:-1]


def _sample(question: Question, picture: np.ndarray, text_only: bool) -> Sample:
    messages = Message("user", question.text, () if text_only else (0,)), Message("assistant", question.answer)
    return Sample(() if text_only else (picture,), messages)
