"""Several pictures of one message become a clip where the family takes clips."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from runtime_py.errors import ImageError
from runtime_py.model import Model
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.clips import TakesClips
from runtime_py.preprocess.cogvlm2 import Processor
from runtime_py.preprocess.cogvlm2_test import IDS, PLACEHOLDER, SETTINGS
from runtime_py.preprocess.xverse_v_test import LetterTokenizer
from runtime_py.serving.clips import most_pictures, with_clips
from runtime_py.serving.refusal import Refusal


def frame(shade: int, height: int = 4) -> np.ndarray:
    return np.full((height, 6, 3), shade, dtype=np.uint8)


def test_the_pictures_of_each_turn_are_one_clip_where_the_first_stood() -> None:
    turns = [
        Message("user", "before\nafter", (0, 1), ("before", 0, 1, "after")),
        Message("assistant", "a"),
        Message("user", "and", (2,), (2, "and")),
        Message("user", "none"),
    ]
    made, clips = with_clips(turns, [frame(1), frame(2), frame(3)])
    assert [turn.parts for turn in made] == [("before", 0, "after"), (), (1, "and"), ()]
    assert [turn.images for turn in made] == [(0,), (), (1,), ()]
    assert [clip.shape for clip in clips] == [(2, 4, 6, 3), (1, 4, 6, 3)]
    assert clips[0][:, 0, 0, 0].tolist() == [1, 2]


def test_frames_of_different_sizes_are_refused() -> None:
    with pytest.raises(Refusal, match=r"6 x 4, 6 x 5") as refused:
        with_clips([Message("user", "?", (0, 1))], [frame(1), frame(2, 5)])
    assert refused.value.param == "messages[0].content"


@pytest.mark.parametrize("video", [True, False])
def test_a_video_model_reads_the_frames_of_a_message(video: bool) -> None:
    processor = Processor({**SETTINGS, "video": video}, LetterTokenizer())
    assert isinstance(processor, TakesClips) and processor.video is video
    turns, clips = with_clips([Message("user", "a", (0, 1, 2))], [frame(shade, 9) for shade in (1, 2, 3)])
    processor.prompt.check(turns, len(clips))
    if not video:
        with pytest.raises(ImageError):
            processor.images(clips)
        return
    images = processor.images(clips)
    ids = processor.encode(turns, images)
    rows = cast(int, SETTINGS["rows"])
    assert [piece.rows for piece in images] == [3 * rows]
    assert int((ids == IDS[PLACEHOLDER]).sum()) == 3 * rows


def test_no_more_pictures_are_announced_than_the_model_takes(model: Model) -> None:
    settings = model.package.manifest["runtime"]
    assert [most_pictures(model.processor, settings, allowed) for allowed in (0, 1, 16)] == [0, 1, 1]
    several = {**settings, "prompt": {**settings["prompt"], "picture": {**settings["prompt"]["picture"], "most": 0}}}
    assert most_pictures(model.processor, several, 16) == 16
    for video, most in ((True, 16), (False, 1)):
        assert most_pictures(Processor({**SETTINGS, "video": video}, LetterTokenizer()), settings, 16) == most


def test_others_do_not_take_clips(model: Model) -> None:
    assert not isinstance(model.processor, TakesClips)
