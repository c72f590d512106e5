"""A caller's messages and pictures, in whatever usual form, as the turns and RGB arrays a processor reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.clips import AXES, open_clip
from runtime_py.preprocess.extent import Check
from runtime_py.preprocess.pictures import MAX_PIXELS, Picture, open_picture

Messages = str | Sequence[Message | Mapping[str, Any]]
"""One question, or turns: `Message`, or ``{"role": ..., "content": ...}`` where content is text or a list of parts.

A part is ``{"type": "text", "text": ...}`` (or the text itself), or ``{"type": "image"}``, which takes the next picture of
``images`` or brings its own under ``image`` (or ``path``). Parts keep their order where the model's prompt does."""

ELSEWHERE = ("url", "base64", "image_url")
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""Keys of image parts in transformers and qwen_vl_utils that are not followed: where a picture is, how large it shall be."""

NEXT_STEPS = {
    "image_url": 'pass pictures in images and name them by {"type": "image"}',
    "video": 'pass its frames as one picture, a uint8 array (frames, height, width, 3), and name it by {"type": "image"}',
}
"""What to do about parts of other kinds."""

PARTS = (
    'texts, {"type": "text", "text": ...}, {"type": "image"}, or {"type": "image", "image": a path, the bytes of a file, '
    "a PIL image or an array}"
)


def read(
    messages: Messages,
    images: Sequence[Picture],
    upright: bool = False,
    check: Check | None = None,
    clips: bool = False,
) -> tuple[list[Message], list[np.ndarray]]:
    """Turns, and uint8 RGB (height, width, 3) pictures that they index in the order in which they stand.

    Pictures that no turn claims belong to the first user turn, in front of its text. A picture that two turns name is there
    twice. ``upright`` and ``check`` are those of `runtime_py.preprocess.pictures.open_picture`. With ``clips`` a uint8 array
    (frames, height, width, 3) may stand for a picture.

    Raises:
        UsageError: no turn, a turn of another form, or more image parts than pictures.
        ImageError: a picture cannot be read.
    """
    rows = [Message("user", messages)] if isinstance(messages, str) else list(messages)
    if not rows:
        raise UsageError("the conversation is empty", "at least one question", "pass a text or a list of messages")
    reader = _Reader(list(images))
    turns = [reader.turn(row, number) for number, row in enumerate(rows, 1)]
    claimed = {part for turn in turns for part in turn.content() if isinstance(part, int)}
    free = tuple(index for index in range(len(images)) if index not in claimed)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if free and first is None:
        raise UsageError(
            f"{len(free)} picture(s) that no turn names, and no turn of the user's to take them",
            'a turn with the role "user"',
            'name them in a turn: {"type": "image"}',
        )
    if free and first is not None:
        turns[first] = replace(turns[first], parts=(*free, *turns[first].content()))
    order: list[int] = []
    turns = [_in_order(turn, order) for turn in turns]
    opened = {index: _opened(reader.pictures[index], upright, check, clips) for index in dict.fromkeys(order)}
    return turns, [opened[index] for index in order]


def _opened(picture: Picture, upright: bool, check: Check | None, clips: bool) -> np.ndarray:
    if isinstance(picture, np.ndarray) and picture.ndim == AXES and clips:
        return open_clip(picture, MAX_PIXELS, check)
    return open_picture(picture, upright=upright, check=check)


def _in_order(turn: Message, order: list[int]) -> Message:
    """The turn with its pictures numbered as they stand; ``order`` grows by what they were."""
    parts: list[str | int] = []
    for part in turn.content():
        if isinstance(part, int):
            order.append(part)
        parts.append(len(order) - 1 if isinstance(part, int) else part)
    images = tuple(part for part in parts if isinstance(part, int))
    plain = parts == [*images, turn.text]
    return Message(turn.role, turn.text, images, () if plain else tuple(parts))


class _Reader:
    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures
        self._given = len(pictures)
        self._next = 0

    def turn(self, row: Message | Mapping[str, Any], number: int) -> Message:
        if isinstance(row, Message):
            named = [part for part in row.content() if isinstance(part, int)]
            if any(not 0 <= index < self._given for index in named):
                raise UsageError(
                    f"turn {number} speaks of pictures {named}", f"indices below {self._given}", "pass those pictures"
                )
            return row
        if not isinstance(row, Mapping) or not isinstance(row.get("role"), str):
            raise UsageError(
                f"turn {number} is {_short(row)}", '{"role": ..., "content": text or parts}', "correct the messages"
            )
        content = row.get("content")
        if isinstance(content, str):
            return Message(row["role"], content)
        if not isinstance(content, list | tuple):
            raise UsageError(
                f"turn {number} ({row['role']}) has the content {_short(content)}",
                f"text, or a list of parts: {PARTS}",
                'write "" for an empty turn, or leave the turn out',
            )
        parts = tuple(self._part(part, number, place) for place, part in enumerate(content, 1)) or ("",)
        texts = [part for part in parts if isinstance(part, str)]
        return Message(row["role"], "\n".join(texts), tuple(part for part in parts if isinstance(part, int)), parts)

    def _part(self, part: object, number: int, place: int) -> str | int:
        """A text, or the index of a picture."""
        if isinstance(part, str):
            return part
        if isinstance(part, Path | Image.Image | np.ndarray):
            return self._claim(part, number)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(cast("Mapping[str, Any]", part).get("text"), str):
            return str(cast("Mapping[str, Any]", part)["text"])
        if kind == "image":
            keys = cast("Mapping[str, Any]", part)
            self._check_keys(keys, number, place)
            return self._claim(keys.get("path") if keys.get("image") is None else keys["image"], number)
        raise UsageError(
            f"part {place} of turn {number} is {_short(part)}",
            PARTS,
            NEXT_STEPS.get(str(kind), "correct the part"),
        )

    def _check_keys(self, part: Mapping[str, Any], number: int, place: int) -> None:
        """Refuse what would be passed over: a picture that is another one than is taken, or a size."""
        asked = [key for key in (*ELSEWHERE, *SIZES) if part.get(key) is not None]
        if asked:
            raise UsageError(
                f"part {place} of turn {number} is a picture with {', '.join(asked)}",
                PARTS,
                "open the picture, scaled as wanted, and pass it under image" if asked[0] in SIZES else "open it first",
            )

    def _claim(self, own: Picture | None, number: int) -> int:
        if own is not None:
            self.pictures.append(own)
            return len(self.pictures) - 1
        if self._next >= self._given:
            raise UsageError(
                f"turn {number} speaks of more than the {self._given} pictures given",
                "a picture for each",
                "pass them in images",
            )
        self._next += 1
        return self._next - 1


def _short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def fingerprint(picture: np.ndarray) -> str:
    """Equal for equal pixels: what decides whether a picture's features are computed again."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16, person=str(picture.shape[:2]).encode()[:16]).hexdigest()
