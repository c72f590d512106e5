"""Awaker's size rule, patch order, positions and gate span, against independent statements."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from export.families.qwen2_vl.prompt import prompt
from runtime_py.errors import ImageError, UsageError
from runtime_py.preprocess.awaker2_5_vl import Processor
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.patches import flatten_patches, rotary_angles, smart_resize
from runtime_py.preprocess.qwen2_vl import multi_axis_positions
from runtime_py.preprocess.xverse_v_test import LetterTokenizer

IDS = {
    "<|im_start|>": 1001,
    "<|im_end|>": 1002,
    "<|vision_start|>": 1003,
    "<|vision_end|>": 1004,
    "<|image_pad|>": 1006,
    "<|video_pad|>": 1007,
}
SETTINGS = {
    "routed": True,
    "patch_size": 2,
    "temporal_patch": 2,
    "merge": 2,
    "head_dim": 8,
    "min_pixels": 64,
    "max_pixels": 4096,
    "prompt": prompt(IDS).to_json(),
}


def test_size_rule_on_random_sizes():
    for height, width in np.random.default_rng(9).integers(28, 5000, size=(200, 2)).tolist():
        got = smart_resize(height, width, 28, 3136, 1003520)
        rounded = [28 * int(np.round(side / 28)) for side in (height, width)]
        area = rounded[0] * rounded[1]
        if area > 1003520:
            scale = math.sqrt(1003520 / (height * width))
            expected = [int(side * scale / 28 + 1e-9) * 28 for side in (height, width)]
            assert got[0] * got[1] <= 1003520
        elif area < 3136:
            scale = math.sqrt(3136 / (height * width))
            expected = [math.ceil(side * scale / 28 - 1e-9) * 28 for side in (height, width)]
        else:
            expected = rounded
        assert list(got) == expected, (height, width)


def test_absurd_aspects_are_refused():
    for height, width in ((28, 28 * 201), (1, 201)):
        with pytest.raises(ImageError, match="aspect of at most 200"):
            smart_resize(height, width, 28, 3136, 1003520)


def test_small_and_long_pictures_are_sized_as_transformers_5_does():
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    for height, width in ((27, 400), (1, 1), (10, 13), (14, 14), (1, 200), (30, 3000), (3000, 30), (16, 16), (42, 70)):
        for least, most in ((3136, 1003520), (3136, 40000), (784, 784), (1, 1003520)):
            got = smart_resize(height, width, 28, least, most)
            assert got == theirs(height, width, 28, least, most) and min(got) >= 28, (height, width, least, most)


def test_patches_and_angles_come_in_blocks():
    rows, columns, patch, merge = 4, 6, 3, 2
    pixels = np.arange(2 * 3 * rows * patch * columns * patch, dtype=np.float32).reshape(2, 3, rows * patch, -1)
    (flat,) = flatten_patches(pixels, patch, merge, 2)
    angles = rotary_angles(rows, columns, merge, 8)
    order = [
        (r + dr, c + dc)
        for r, c in itertools.product(range(0, rows, merge), range(0, columns, merge))
        for dr, dc in itertools.product(range(merge), repeat=2)
    ]
    for index, (row, column) in enumerate(order):
        piece = pixels[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        np.testing.assert_array_equal(flat[index], piece.transpose(1, 0, 2, 3).reshape(-1))
        np.testing.assert_allclose(angles[index], [row, row * 0.01, column, column * 0.01], rtol=1e-6)


def test_positions_of_text_picture_text():
    mask = np.array([False] * 3 + [True] * 6 + [False] * 2)
    positions = multi_axis_positions(mask, [np.array([1, 4, 6])], 2)
    assert positions[:, :3].tolist() == [[0, 1, 2]] * 3
    assert positions[:, 3:9].tolist() == [[3] * 6, [3, 3, 3, 4, 4, 4], [3, 4, 5, 3, 4, 5]]
    assert positions[:, 9:].tolist() == [[6, 7]] * 3


def test_gate_span_is_the_first_user_turn_in_every_turn():
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([np.zeros((8, 8, 3), np.uint8)])
    first = [Message("user", "who?", (0,))]
    later = [*first, Message("assistant", "me"), Message("user", "why?")]
    for messages in (first, later):
        ids = processor.encode(messages, images)
        start, end = processor.layout(ids, images).state["span"]
        assert ids[0, start] == IDS["<|vision_start|>"]
        assert ids[0, end] == IDS["<|im_end|>"]
        assert "".join(map(chr, ids[0, end - 4 : end])) == "who?"


PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (
            [Message("user", "a"), Message("assistant", "b"), Message("user", "c", (0,))],
            "turn 3 brings a picture, and turn 1",
        ),
        ([Message("system", "s"), Message("user", "a"), Message("user", "c", (0,))], "turn 3 brings a picture, and turn 2"),
        ([Message("system", "s"), Message("system", "t"), Message("user", "a", (0,))], "turn 2 is not the user's"),
        ([Message("assistant", "b"), Message("user", "a", (0,))], "turn 1 is not the user's"),
        ([Message("system", "s", (0,))], "turn 2 is not the user's"),
    ],
)
def test_a_conversation_whose_first_question_the_gates_cannot_read_is_refused(messages: list[Message], told: str):
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([PICTURE])
    with pytest.raises(UsageError) as refusal:
        processor.encode(messages, images)
    assert told in refusal.value.what
    assert "/reset" in refusal.value.next_step
    base = Processor({**SETTINGS, "routed": False}, LetterTokenizer())
    assert base.layout(base.encode(messages, images), images).image_rows.sum() == images[0].rows


def test_the_gate_span_holds_the_first_question_behind_instructions_of_ones_own():
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([PICTURE])
    parts = ("see ", 0, " who?")
    messages = [Message("system", "Be brief."), Message("user", "see \n who?", (0,), parts)]
    ids = processor.encode(messages, images)
    start, end = processor.layout(ids, images).state["span"]
    assert ids[0, start] == IDS["<|vision_start|>"]
    assert "".join(map(chr, ids[0, end - 5 : end])) == " who?"
    ids = processor.encode([Message("system", "Be brief."), Message("user", "who?")], [])
    start, end = processor.layout(ids, []).state["span"]
    assert "".join(map(chr, ids[0, start:end])) == "ser\nwho?", "the third id of the turn on: here a letter is an id"


def test_a_clip_alone_is_read_past_the_word_user():
    processor = Processor(SETTINGS, LetterTokenizer())
    clips = processor.images([np.zeros((2, 8, 8, 3), np.uint8)])
    ids = processor.encode([Message("user", "who?", (0,))], clips)
    start, _ = processor.layout(ids, clips).state["span"]
    assert start < ids[0].tolist().index(IDS["<|vision_start|>"])


def test_the_gate_reads_pictures_in_prefill_and_raw_embeddings_in_decode():
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([np.zeros((8, 8, 3), np.uint8)])
    ids = processor.encode([Message("user", "who?", (0,))], images)
    layout = processor.layout(ids, images)
    raw = np.random.default_rng(0).normal(size=(1, ids.shape[1], 4)).astype(np.float32)
    merged = np.where(layout.image_rows[None, :, None], np.float32(100), raw)
    start, end = ids[0].tolist().index(IDS["<|vision_start|>"]), ids[0].tolist().index(ord("?")) + 1
    for phase, rows in (("prefill", merged), ("decode", raw)):
        gate = processor.embedding_inputs(layout, merged, raw, phase)["gate_input"]
        np.testing.assert_allclose(gate, rows[:, start:end].mean(axis=1), rtol=1e-6)


def test_a_video_fills_whole_temporal_slices():
    (clip,) = Processor(SETTINGS, None).images([np.zeros((3, 8, 8, 3), np.uint8)])
    assert clip.vision["pixel_values"].shape[0] == 2


def test_a_clip_does_not_take_the_places_of_a_picture():
    processor = Processor(SETTINGS, LetterTokenizer())
    picture, clip = processor.images([np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)])
    assert picture.rows == clip.rows
    ids = processor.encode([Message("user", "who?", (0,))], [picture])
    processor.layout(ids, [picture])
    with pytest.raises(UsageError, match="0 of clips"):
        processor.layout(ids, [clip])


def test_another_mean_and_deviation_are_used():
    picture = np.full((8, 8, 3), 255, np.uint8)
    (plain,) = Processor({**SETTINGS, "mean": [0.5] * 3, "std": [0.25] * 3}, None).images([picture])
    np.testing.assert_allclose(plain.vision["pixel_values"], 2.0)
