"""What other tools are asked, with our runtime's answers: prompts as ids and pixel values, and texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runtime_py
from parity_tests.laboratory.tokenizer_texts import texts
from runtime_py import Overrides, tokenizer
from runtime_py.generation import conversation
from runtime_py.model import Model
from runtime_py.package import read

NEW_TOKENS, TEXTS = 24, 100
GREEDY = Overrides(temperature=0.0, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS)
TEXT, PICTURE = "text", "picture"
WORDS = {TEXT: "Hello", PICTURE: "What color is the circle?"}


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


def drawn_texts(folder: Path) -> list[str]:
    """Texts of every kind (`parity_tests.laboratory.tokenizer_texts`), the package's marks among them."""
    marks = list(read(folder).runtime["prompt"]["marks"])
    # onnxruntime-genai takes texts as C strings, which end at a null character
    return [text.replace("\0", "") for text in texts(random.Random(14), TEXTS, marks)]


def our_ids(folder: Path, drawn: Sequence[str]) -> list[list[int]]:
    """The ids of our tokenizer, by text."""
    words = tokenizer.load(folder)
    return [words.encode(text) for text in drawn]


def _asked(model: Model, kind: str, pictures: Sequence[Path]) -> Question:
    text = WORDS[kind]
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
