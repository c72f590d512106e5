"""Short conversations about drawn pictures, before any processor has seen them: the standard ones, and a demo's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.package.sample_questions import PROMPTS, drawn_pictures
from parity_tests.judging.probes import Question
from runtime_py.preprocess.base import Message, Processor

if TYPE_CHECKING:
    from export.demo.recipes.base import Recipe

DEMO_SEED = 20_240_206
"""Of the pictures that a demo is asked about here; training, tables, searches and calibrations draw from others."""


@dataclass(frozen=True)
class Prompt:
    """A short conversation about pictures, before any processor has seen it.

    Attributes:
        pictures: uint8 RGB (height, width, 3).
        truth: every answer that is right; empty where there is none.
    """

    name: str
    pictures: tuple[np.ndarray, ...]
    messages: tuple[Message, ...]
    truth: tuple[str, ...] = ()

    def question(self, processor: Processor) -> Question:
        """The prompt in ids, and how many rows it takes with its pictures'.

        Raises:
            UsageError: the family's format does not take it.
        """
        images = processor.images(self.pictures) if self.pictures else []
        ids = processor.encode(list(self.messages), images)
        text = next((m.text for m in reversed(self.messages) if m.role == "user"), "")
        rows = processor.layout(ids, images).input_ids.shape[1]
        return Question(self.name, self.pictures, ids, text, truth=self.truth, positions=int(rows), messages=self.messages)


def standard_prompts() -> list[Prompt]:
    """The drawn pictures and questions that every package is asked."""
    drawn = drawn_pictures()
    return [
        Prompt(name, tuple(drawn[i] for i in chosen), (Message("user", text, tuple(range(len(chosen)))),))
        for name, chosen, text in PROMPTS
    ]


def demo_prompts(recipe: Recipe) -> list[Prompt]:
    """Questions that a demo has learnt to answer, about a wide picture, a tall one and none; names as the standard ones."""
    from export.demo.questions import TALK

    question, answer = TALK["en"][0]
    wide, tall = _scene(recipe, wide=True), _scene(recipe, wide=False)
    return [wide, tall, Prompt("text", (), (Message("user", question),), (answer,))]


def _scene(recipe: Recipe, wide: bool) -> Prompt:
    from export.demo.pictures import draw, sample_scene, sample_size
    from export.demo.questions import ask

    kind, language = ("colour", "en") if wide else ("shape", "zh")
    rng = np.random.default_rng([DEMO_SEED, int(wide)])
    while True:
        scene = sample_scene(rng, digits=0.0)
        width, height = sample_size(rng, recipe.side)
        asked = ask(scene, kind, language, rng)
        if asked is not None and width != height and (width > height) == wide:
            shown = draw(scene, width, height)
            return Prompt(
                "wide" if wide else "tall", (shown,), (Message("user", asked.text, (0,)),), (asked.answer,)
            )  # fmt: skip
