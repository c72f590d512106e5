"""Clips that callers hand over: read where the family reads them, refused in words where they are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_py.errors import ImageError
from runtime_py.generation import conversation
from runtime_py.preprocess import awaker2_5_vl, cogvlm2, minicpm_v, qwen2_vl
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.clips import FramesDifferError, joined, open_clip, reads_clips, takes_clips
from runtime_py.preprocess.cogvlm2_test import SETTINGS

CLIP = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)


def test_which_families_read_clips_and_which_read_nothing_else() -> None:
    video, picture = (cogvlm2.Processor({**SETTINGS, "video": video}, None) for video in (True, False))
    assert (reads_clips(video), takes_clips(video)) == (True, True)
    assert (reads_clips(picture), takes_clips(picture)) == (False, False)
    for module in (qwen2_vl, awaker2_5_vl):
        assert module.Processor.reads_clips and not hasattr(module.Processor, "video")
    assert not hasattr(minicpm_v.Processor, "reads_clips")


def test_a_clip_stands_for_a_picture_in_any_form_of_message() -> None:
    seen: list[tuple[int, int]] = []

    def check(name: str, width: int, height: int) -> None:
        seen.append((width, height))

    forms: list[tuple[Any, list[np.ndarray]]] = [
        ("What?", [CLIP]),
        ([{"role": "user", "content": [{"type": "image"}, "What?"]}], [CLIP]),
        ([{"role": "user", "content": [{"type": "image", "image": CLIP}, "What?"]}], []),
    ]
    for messages, images in forms:
        turns, pictures = conversation.read(messages, images, check=check, clips=True)
        assert turns[0].images == (0,) and np.array_equal(pictures[0], CLIP)
    assert seen == [(6, 4)] * 3
    with pytest.raises(ImageError, match=r"uint8 \[3, 4, 6, 3\] is no picture"):
        conversation.read("What?", [CLIP])


@pytest.mark.parametrize("clip", [CLIP / 255, CLIP[:0], CLIP.transpose(0, 3, 1, 2), CLIP[..., :2], CLIP[0]])
def test_arrays_that_are_no_clip(clip: np.ndarray) -> None:
    with pytest.raises(ImageError, match="is no clip"):
        open_clip(clip, 10**6)


def test_the_pixels_of_all_frames_count() -> None:
    assert open_clip(CLIP, CLIP.size // 3).shape == CLIP.shape
    with pytest.raises(ImageError, match="too large") as caught:
        open_clip(CLIP, CLIP.size // 3 - 1)
    assert "found 3 of 6 x 4" in caught.value.expected


def test_frames_and_clips_of_a_turn_are_one_clip() -> None:
    turns = [Message("user", "a", (0, 1)), Message("assistant", "b"), Message("user", "c", (2,))]
    made, clips = joined(turns, [CLIP[0], CLIP[1:], CLIP])
    assert [turn.images for turn in made] == [(0,), (), (1,)]
    assert all(np.array_equal(clip, CLIP) for clip in clips)
    with pytest.raises(FramesDifferError, match="9 x 9") as caught:
        joined([*turns[1:], Message("user", "d", (0, 1))], [CLIP, np.zeros((9, 9, 3), np.uint8), CLIP])
    assert caught.value.turn == 2
