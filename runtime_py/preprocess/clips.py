"""Clips: frames of a video in the order of time, as one array or as several pictures of a turn, where a model reads them.

Nothing here decodes a video: whoever does picks the frames (`runtime_py.preprocess.frames` has the published rules).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from runtime_py.errors import ImageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.extent import Check

AXES = 4
"""Of a clip: frames, height, width, channels."""

NAME = "the given clip"


@runtime_checkable
class ReadsClips(Protocol):
    """Optional addition to `runtime_py.preprocess.base.Processor`: it says whether a clip, uint8 RGB (frames, height, width,
    3), may stand for a picture.
    """

    reads_clips: bool


@runtime_checkable
class TakesClips(Protocol):
    """A processor that says whether it takes clips in the place of pictures, and no pictures."""

    video: bool


class FramesDifferError(ImageError):
    """Frames of one clip that differ in size.

    Attributes:
        turn: of the conversation, counted from 0.
    """

    turn = 0


def takes_clips(processor: object) -> bool:
    """Whether a processor takes clips alone, so that pictures of a turn are the frames of one."""
    return isinstance(processor, TakesClips) and processor.video


def reads_clips(processor: object) -> bool:
    """Whether a processor reads clips, alone or beside pictures."""
    return isinstance(processor, ReadsClips) and processor.reads_clips


def open_clip(clip: np.ndarray, most_pixels: int, check: Check | None = None) -> np.ndarray:
    """A caller's clip as processors read it: uint8 RGB (frames, height, width, 3).

    Args:
        most_pixels: of all frames together.
        check: as `runtime_py.preprocess.pictures.open_picture` has it; told the size of a frame.

    Raises:
        ImageError: an array of another kind, without a frame, or of too many pixels.
    """
    if clip.dtype != np.uint8 or clip.ndim != AXES or clip.shape[3] != 3 or 0 in clip.shape:
        raise ImageError(
            f"an array of {clip.dtype} {list(clip.shape)} is no clip",
            "uint8 (frames, height, width, 3), of one frame at least",
            "scale to 0..255, convert to uint8 and put the channels last",
        )
    frames, height, width = clip.shape[:3]
    if frames * height * width > most_pixels:
        raise ImageError(
            f"{NAME} is too large",
            f"at most {most_pixels:,} pixels in all frames, found {frames} of {width} x {height}",
            "take fewer frames, or scale them down",
        )
    if check is not None:
        check(NAME, width, height)
    return np.ascontiguousarray(clip)


def joined(turns: Sequence[Message], pictures: Sequence[np.ndarray]) -> tuple[list[Message], list[np.ndarray]]:
    """Turns whose pictures are one clip each, at the place of the first, in the order in which they were given.

    Args:
        turns: with indices into ``pictures``, uint8 RGB (height, width, 3) or clips.

    Raises:
        FramesDifferError: frames of one turn differ in size.
    """
    made: list[Message] = []
    clips: list[np.ndarray] = []
    for number, turn in enumerate(turns):
        if not turn.images:
            made.append(turn)
            continue
        parts = [picture if picture.ndim == AXES else picture[None] for picture in (pictures[i] for i in turn.images)]
        _check_sizes(parts, number)
        first = turn.images[0]
        kept = tuple(
            len(clips) if part == first else part for part in turn.content() if isinstance(part, str) or part == first
        )
        made.append(replace(turn, images=(len(clips),), parts=kept))
        clips.append(np.concatenate(parts))
    return made, clips


def _check_sizes(parts: Sequence[np.ndarray], turn: int) -> None:
    sizes = sorted({part.shape[1:3] for part in parts})
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sizes)
        error = FramesDifferError(
            f"the frames of a clip are of different sizes: {shown}", "frames of one size", "scale or cut them to one size"
        )
        error.turn = turn
        raise error
