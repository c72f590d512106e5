"""Frames of a video as OpenAI's clients send them: several pictures in one message, for a model that takes clips alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import prompt_of
from runtime_py.serving.refusal import invalid


@runtime_checkable
class TakesClips(Protocol):
    """A processor that says whether it takes clips, uint8 RGB (frames, height, width, 3), in the place of pictures."""

    video: bool


def most_pictures(processor: object, settings: Mapping[str, Any], allowed: int) -> int:
    """Pictures that one request may bring: ``allowed``, or fewer where the model takes fewer in a conversation.

    Args:
        settings: of the processor, as manifest.json has them under ``runtime``.
        allowed: frames of a clip count as pictures, and a model of clips takes as many of them.
    """
    if isinstance(processor, TakesClips) and processor.video:
        return allowed
    most = prompt_of(settings).picture.most if "prompt" in settings else 0
    return min(allowed, most) if most else allowed


def with_clips(turns: Sequence[Message], pictures: Sequence[np.ndarray]) -> tuple[tuple[Message, ...], list[np.ndarray]]:
    """Turns whose pictures are one clip each, at the place of the first, in the order in which they were sent.

    Args:
        turns: with indices into ``pictures``, uint8 RGB (height, width, 3).

    Raises:
        Refusal: frames of one turn differ in size.
    """
    made: list[Message] = []
    clips: list[np.ndarray] = []
    for number, turn in enumerate(turns):
        if not turn.images:
            made.append(turn)
            continue
        frames = [pictures[image] for image in turn.images]
        sizes = {frame.shape for frame in frames}
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for height, width, _ in sorted(sizes))
            raise invalid(f"the frames of a clip are of different sizes: {shown}", f"messages[{number}].content")
        first = turn.images[0]
        parts = tuple(
            len(clips) if part == first else part for part in turn.content() if isinstance(part, str) or part == first
        )
        made.append(replace(turn, images=(len(clips),), parts=parts))
        clips.append(np.stack(frames))
    return tuple(made), clips
