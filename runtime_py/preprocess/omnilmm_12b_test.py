"""OmniLMM's squashed picture against a statement of Pillow's bicubic rule in integers, its prompt, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.families.omnilmm_12b.prompt import SYSTEM, prompt
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.omnilmm_12b import Processor
from runtime_py.preprocess.xverse_v_test import LetterTokenizer

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "omnilmm-12b"
IDS = {"<s>": 1, "</s>": 2, "<im_patch>": 1001, "<im_start>": 1002, "<im_end>": 1003}
PROMPT = prompt(IDS)
SETTINGS = {"image_size": 28, "queries": 4, "prompt": replace(PROMPT, limit=400).to_json()}
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

FRACTION_BITS = 22
"""Bits behind the point of a weight: 32 less 8 of the pixel and 2 of room."""


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def weights(size_in: int, size_out: int) -> np.ndarray:
    """int64 (size_out, size_in): the kernel stretched when shrinking, cut at the border, made to sum to one, in fixed point.

    Source of the rule: Pillow, src/libImaging/Resample.c.
    """
    step = size_in / size_out
    stretch = max(step, 1.0)
    weights = np.zeros((size_out, size_in), np.int64)
    for row in range(size_out):
        centre = (row + 0.5) * step
        low = max(int(centre - 2 * stretch + 0.5), 0)
        high = min(int(centre + 2 * stretch + 0.5), size_in)
        share = bicubic((np.arange(low, high) - centre + 0.5) / stretch)
        fixed = share / share.sum() * (1 << FRACTION_BITS)
        weights[row, low:high] = np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int64)
    return weights


def one_pass(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize the first axis of whole numbers, rounded to whole numbers from 0 to 255; nothing happens at the same size."""
    if len(picture) == size:
        return picture
    total = np.tensordot(weights(len(picture), size), picture.astype(np.int64), axes=1)
    return np.clip((total + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS, 0, 255)


def squashed(picture: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture as a square, each pass rounded, columns or rows first; float32 (1, 3, size, size) by CLIP's statistics.

    Pillow 13 takes the rows of a tall picture first; the two orders round differently and are both right.
    """
    turned = picture.transpose(1, 0, 2)
    columns_first = one_pass(one_pass(turned, size).transpose(1, 0, 2), size)
    rows_first = one_pass(one_pass(picture, size).transpose(1, 0, 2), size).transpose(1, 0, 2)
    scaled = (square.astype(np.float32) / np.float32(255) for square in (columns_first, rows_first))
    first, second = (
        ((x - np.asarray(MEAN, np.float32)) / np.asarray(DEVIATION, np.float32)).transpose(2, 0, 1)[None] for x in scaled
    )
    return first, second


def assert_squashed(made: np.ndarray, picture: np.ndarray, size: int) -> None:
    """Every value of the processor's array is the stated one, in one of the two orders."""
    assert any(np.array_equal(made, stated) for stated in squashed(picture, size)), picture.shape


def random_pictures(count: int, seed: int) -> list[np.ndarray]:
    """Noise of any size and aspect from 1 x 1 on, sides spread evenly over their logarithm."""
    draw = np.random.default_rng(seed)
    sides = np.exp(draw.uniform(0, np.log(300), (count, 2))).astype(int)
    return [draw.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sides]


def test_200_random_sizes_are_squashed_as_stated():
    processor = Processor(SETTINGS, None)
    for picture in random_pictures(200, 3):
        (made,) = processor.images([picture])
        assert_squashed(made.vision["pixel_values"], picture, 28)
        assert made.rows == 4


def test_the_golden_picture_is_squashed_as_stated():
    with np.load(GOLDEN / "inputs.npz") as stored:
        assert min(np.abs(stated - stored["pixel_values"]).max() for stated in squashed(stored["image"], 84)) < 1e-6


class MarkerTokenizer(LetterTokenizer):
    """One id a character, and the three markers as one id each."""

    def encode(self, text):
        names = {"<im_patch>": 1001, "<im_start>": 1002, "<im_end>": 1003}
        ids = []
        while text:
            marker = next((name for name in names if text.startswith(name)), None)
            ids.append(names[marker] if marker else ord(text[0]))
            text = text[len(marker) if marker else 1 :]
        return ids


def test_three_turns_are_joined_as_published():
    processor = Processor({**SETTINGS, "prompt": PROMPT.to_json()}, MarkerTokenizer())
    images = processor.images([np.zeros((9, 7, 3), np.uint8)])
    messages = [Message("user", "what?", (0,)), Message("assistant", "a dog"), Message("user", "why?")]
    ids = processor.encode(messages, images)
    text = "".join(
        {1001: "#", 1002: "[", 1003: "]", 1: "^", 2: "</s>"}.get(token) or chr(token) for token in ids[0].tolist()
    )
    assert text == (
        f"^<|system|>\n{SYSTEM}</s>\n<|user|>\n[####]\nwhat?</s>\n"
        "<|assistant|>\na dog</s>\n<|user|>\nwhy?</s>\n<|assistant|>\n"
    )
    layout = processor.layout(ids, images)
    assert set(ids[0, layout.image_rows].tolist()) == {1001}
    assert int(layout.image_rows.sum()) == 4


def test_what_upstream_cannot_answer_is_refused():
    processor = Processor(SETTINGS, MarkerTokenizer())
    picture = np.zeros((9, 7, 3), np.uint8)
    with pytest.raises(UsageError, match="2 pictures"):
        processor.images([picture, picture])
    with pytest.raises(UsageError, match="at most 400"):
        processor.encode([Message("user", "x" * 400)], [])
    images = processor.images([picture])
    ids = processor.encode([Message("user", "hi", (0,))], images)
    with pytest.raises(UsageError, match="<im_end>"):
        processor.layout(np.where(ids == 1003, 65, ids), images)
    with pytest.raises(UsageError, match="0 <im_start>"):
        processor.layout(np.where(ids == 1002, 65, ids), images)
