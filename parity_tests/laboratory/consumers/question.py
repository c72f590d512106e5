"""One question as other tools are asked it: ids and pixel values of our processor, and what our runtime answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runtime_py
from runtime_py import Overrides
from runtime_py.generation import conversation
from runtime_py.model import Model

NEW_TOKENS = 24
GREEDY = Overrides(temperature=0.0, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS)
TEXT, PICTURE = "text", "picture"


@dataclass(frozen=True)
class Question:
    """A prompt and our answer to it.

    Attributes:
        kind: ``text`` or ``picture``.
        ids: int64 (tokens,), every row of a picture as the placeholder's id.
        pixels: float32 (views, 3, height, width); None without a picture.
        rows: how many rows of pictures the prompt holds.
        answer: ids of our own greedy answer, the one that ends it among them when it came to an end.
        stops: ids that end an answer.
    """

    kind: str
    ids: np.ndarray
    pixels: np.ndarray | None
    rows: int
    answer: tuple[int, ...]
    stops: tuple[int, ...]


def questions(folder: Path, picture: Path) -> list[Question]:
    """A question with a picture, and the same without, both answered greedily by our runtime."""
    with runtime_py.load(folder, verify="size", threads=1) as model:
        return [_asked(model, TEXT, []), _asked(model, PICTURE, [picture])]


def _asked(model: Model, kind: str, pictures: Sequence[Path]) -> Question:
    text = "What color is the circle?" if pictures else "Hello"
    turns, arrays = conversation.read(text, list(pictures))
    images = model.processor.images(arrays)
    layout = model.prompt_layout(turns, images)
    answer = model.chat(text, images=list(pictures), overrides=GREEDY)
    views = [image.vision["pixel_values"] for image in images]
    return Question(
        kind,
        layout.input_ids[0],
        np.concatenate(views) if views else None,
        int(layout.image_rows.sum()),
        answer.ids,
        tuple(model.package.generation["stop_ids"]),
    )
