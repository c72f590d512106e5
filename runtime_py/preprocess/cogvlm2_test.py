"""CogVLM2's positions and routing against the published walk, its prompts, and the float resizing of frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from export.families.cogvlm2.prompt import BEGIN, PLACEHOLDER, prompt
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.cogvlm2 import Processor, routed_to_vision, shared_positions
from runtime_py.preprocess.frames import centre_crop, frame_per_second, shortest_side_bilinear, spread_frames
from runtime_py.preprocess.omnilmm_12b_test import DEVIATION, MEAN, assert_squashed, random_pictures
from runtime_py.preprocess.xverse_v_test import LetterTokenizer

IDS = {BEGIN: 1, PLACEHOLDER: 2}
SETTINGS = {
    "video": False,
    "template": "chat",
    "experts": True,
    "image_size": 8,
    "rows": 3,
    "frames": 24,
    "prompt": prompt("chat", IDS).to_json(),
}


def walked_positions(types: list[int]) -> list[int]:
    """The published loop: relabel both ends of every vision run as language, then count."""
    labels = list(types)
    for index, kind in enumerate(types):
        neighbours = [types[j] if 0 <= j < len(types) else 0 for j in (index - 1, index + 1)]
        if kind == 1 and 0 in neighbours:
            labels[index] = 0
    positions, position = [0], 0
    for index in range(1, len(labels)):
        if labels[index] == 0 or labels[index - 1] == 0:
            position += 1
        positions.append(position)
    return positions


def test_positions_and_routing_on_random_type_sequences():
    generator = np.random.default_rng(7)
    for _ in range(200):
        runs = generator.integers(1, 7, size=8)
        types = np.concatenate([np.full(run, index % 2) for index, run in enumerate(runs)])
        vision = types.astype(bool)
        assert shared_positions(vision).tolist() == walked_positions(types.tolist())
        expected = [bool(types[i] and i + 1 < len(types) and types[i + 1]) for i in range(len(types))]
        assert routed_to_vision(vision).tolist() == expected


def test_an_image_costs_three_positions():
    vision = np.array([False] + [True] * 10 + [False, False])
    assert shared_positions(vision).tolist() == [0, 1, *[2] * 8, 3, 4, 5]


def test_every_token_is_routed_once_and_put_back():
    mask = np.array([[False, True, True, False, True]])
    arranged = Processor(SETTINGS, None).arrange({"vision_expert": mask})
    rows = np.concatenate([arranged["language_index"], arranged["vision_index"]])
    np.testing.assert_array_equal(rows[arranged["restore_index"]], np.arange(5))
    np.testing.assert_array_equal(arranged["vision_index"], [1, 2, 4])


def test_chat_prompt_puts_the_picture_right_after_the_start():
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([np.zeros((5, 9, 3), np.uint8)])
    messages = [Message("user", "who?", (0,)), Message("assistant", "me"), Message("user", "why?")]
    ids = processor.encode(messages, images)[0].tolist()
    assert ids[:4] == [1, 2, 2, 2]
    assert "".join(map(chr, ids[4:])) == "Question: who? Answer: me\nQuestion: why? Answer:"


def test_the_placeholder_in_a_text_is_text():
    processor = Processor(SETTINGS, LetterTokenizer())
    images = processor.images([np.zeros((5, 9, 3), np.uint8)])
    ids = processor.encode([Message("user", "<|reserved_special_token_0|>", (0,))], images)
    assert (ids == 2).sum() == 4
    assert np.flatnonzero(processor.layout(ids, images).image_rows).tolist() == [1, 2, 3]


def test_a_base_model_is_given_the_last_text_alone():
    form = prompt("base", IDS)
    processor = Processor({**SETTINGS, "template": "base", "prompt": form.to_json()}, LetterTokenizer())
    messages = [Message("user", "who?"), Message("assistant", "me"), Message("user", "why?")]
    assert "".join(map(chr, processor.encode(messages, [])[0, 1:])) == "why?"


def test_video_chat_numbers_its_frames():
    processor = Processor({**SETTINGS, "video": True, "experts": False}, LetterTokenizer())
    images = processor.images([np.zeros((2, 5, 9, 3), np.uint8)])
    ids = processor.encode([Message("user", "q", (0,))], images)[0].tolist()
    assert ids[:9] == [1, 2, 2, 2, ord("0"), 2, 2, 2, ord("1")]


@pytest.mark.parametrize(("height", "width", "size"), [(41, 63, 36), (63, 41, 36), (20, 90, 33), (36, 36, 36)])
def test_bilinear_equals_torch(height, width, size):
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(8).normal(size=(2, 3, height, width)).astype(np.float32)
    ours = shortest_side_bilinear(pixels, size)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(pixels), size=ours.shape[2:], mode="bilinear")
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)
    assert min(ours.shape[2:]) == size
    assert centre_crop(ours, size).shape == (2, 3, size, size)


def test_frames_are_taken_once_a_second_or_spread_over_a_minute():
    assert frame_per_second([0.0, 0.4, 0.9, 1.6, 2.1], 24) == [0, 2, 4]
    assert frame_per_second([index / 10 for index in range(400)], 24) == list(range(0, 240, 10))
    spread = spread_frames(3000, 25.0, 24)
    assert (spread[0], spread[-1], len(spread)) == (0, 1499, 24)
    short = spread_frames(3, 25.0, 24)
    assert (short[0], short[-1], len(short)) == (0, 2, 24) and short == sorted(short)
    assert frame_per_second([], 24) == []


def test_a_clip_has_no_more_frames_than_the_model_was_made_for():
    processor = Processor({**SETTINGS, "video": True, "frames": 2}, None)
    (made,) = processor.images([np.zeros((2, 8, 8, 3), np.uint8)])
    assert len(made.vision["pixel_values"]) == 2
    with pytest.raises(UsageError, match="3 frames"):
        processor.images([np.zeros((3, 8, 8, 3), np.uint8)])


def test_200_random_sizes_are_squashed_as_stated():
    processor = Processor({**SETTINGS, "image_size": 24}, None)
    for picture in random_pictures(200, 4):
        (made,) = processor.images([picture])
        assert_squashed(made.vision["pixel_values"], picture, 24)


def test_200_random_frame_sizes_keep_their_centre():
    """Shorter side to the size, longer side to the floor of the scaled one, torch's bilinear, then the middle square."""
    processor = Processor({**SETTINGS, "video": True, "image_size": 12}, None)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    for frame in random_pictures(200, 5):
        height, width = frame.shape[:2]
        ratio = max(height, width) / min(height, width)
        sides = [12 if side == min(height, width) else math.floor(ratio * 12) for side in (height, width)]
        pixels = (torch.from_numpy(frame).permute(2, 0, 1).float() / 255 - mean) / deviation
        wide = torch.nn.functional.interpolate(pixels[None], size=sides, mode="bilinear", align_corners=False)
        top, left = (round((side - 12) / 2) for side in sides)
        (made,) = processor.images([frame[None]])
        expected = wide[:, :, top : top + 12, left : left + 12].numpy()
        np.testing.assert_allclose(made.vision["pixel_values"], expected, atol=3e-5, err_msg=str(frame.shape))
