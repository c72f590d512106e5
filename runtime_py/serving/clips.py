"""Frames of a video as OpenAI's clients send them: several pictures in one message, for a model that takes clips alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.preprocess.base import Message
from runtime_py.preprocess.clips import FramesDifferError, joined, takes_clips
from runtime_py.prompt.format import prompt_of
from runtime_py.serving.refusal import invalid


def most_pictures(processor: object, settings: Mapping[str, Any], allowed: int) -> int:
    """Pictures that one request may bring: ``allowed``, or fewer where the model takes fewer in a conversation.

    Args:
        settings: of the processor, as manifest.json has them under ``runtime``.
        allowed: frames of a clip count as pictures, and a model of clips takes as many of them.
    """
    if takes_clips(processor):
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
    try:
        made, clips = joined(turns, pictures)
    except FramesDifferError as error:
        raise invalid(error.what, f"messages[{error.turn}].content") from error
    return tuple(made), clips
