"""A caller's messages and pictures, in whatever usual form, as the turns and RGB arrays a processor reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.pictures import Picture, open_picture

Messages = str | Sequence[Message | Mapping[str, Any]]
"""One question, or turns: `Message`, or ``{"role": ..., "content": ...}`` where content is text or a list of
``{"type": "text", "text": ...}`` and ``{"type": "image"}`` parts; an image part takes the next picture of ``images``,
or brings its own under ``image``."""


def read(messages: Messages, images: Sequence[Picture]) -> tuple[list[Message], list[np.ndarray]]:
    """Turns, and uint8 RGB (height, width, 3) pictures that their ``images`` index.

    Pictures that no turn claims belong to the first user turn.

    Raises:
        UsageError: no turn, a turn of another form, or more image parts than pictures.
        ImageError: a picture cannot be read.
    """
    rows = [Message("user", messages)] if isinstance(messages, str) else list(messages)
    if not rows:
        raise UsageError("the conversation is empty", "at least one question", "pass a text or a list of messages")
    reader = _Reader(list(images))
    turns = [reader.turn(row) for row in rows]
    claimed = {index for turn in turns for index in turn.images}
    free = tuple(index for index in range(len(images)) if index not in claimed)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if free and first is not None:
        turns[first] = Message("user", turns[first].text, tuple(sorted((*free, *turns[first].images))))
    return turns, [open_picture(picture) for picture in reader.pictures]


class _Reader:
    def __init__(self, pictures: list[Picture]) -> None:
        self.pictures = pictures
        self._given = len(pictures)
        self._next = 0

    def turn(self, row: Message | Mapping[str, Any]) -> Message:
        if isinstance(row, Message):
            if any(not 0 <= index < self._given for index in row.images):
                raise UsageError(
                    f"a message speaks of pictures {list(row.images)}", f"indices below {self._given}", "pass those pictures"
                )
            return row
        content = row.get("content") if isinstance(row, Mapping) else None
        if not isinstance(row, Mapping) or not isinstance(row.get("role"), str) or not isinstance(content, str | list):
            raise UsageError(f"a message is {row!r}", '{"role": ..., "content": text or parts}', "correct the messages")
        if isinstance(content, str):
            return Message(row["role"], content)
        texts, images = [], []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text":
                texts.append(str(part["text"]))
            elif kind == "image":
                images.append(self._claim(part.get("image")))
            else:
                raise UsageError(f"a content part is {part!r}", 'type "text" or "image"', "correct the messages")
        return Message(row["role"], "\n".join(texts), tuple(images))

    def _claim(self, own: Picture | None) -> int:
        if own is not None:
            self.pictures.append(own)
            return len(self.pictures) - 1
        if self._next >= self._given:
            raise UsageError(
                f"the messages speak of more than the {self._given} pictures given",
                "a picture for each",
                "pass them in images",
            )
        self._next += 1
        return self._next - 1


def fingerprint(picture: np.ndarray) -> str:
    """Equal for equal pixels: what decides whether a picture's features are computed again."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16, person=str(picture.shape[:2]).encode()[:16]).hexdigest()
