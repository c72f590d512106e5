"""Awaker2.5-VL: Qwen2-VL's preprocessing, and the span of the prompt that the expert gates read.

Source: MetabrainAGI/Awaker at 08c4796, Awaker2.5-VL/transformers/src/transformers/models/qwen2_vl, README.md (prompt_pos).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess import qwen2_vl
from runtime_py.preprocess.base import ImageInputs, Layout, Message

TURN_END, VISION_START = "<|im_end|>", "<|vision_start|>"


class Processor(qwen2_vl.Processor):
    """Qwen2-VL's, and the mean embedding of the span that the experts' gates read, as an input of the decoder.

    The setting ``routed`` is false in packages of Qwen2-VL made before it had a processor of its own.
    """

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        ids = super().encode(messages, images)
        if self.settings["routed"]:
            check_first_question(messages)
        return ids

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        layout = super().layout(input_ids, images)
        if not self.settings["routed"]:
            return layout
        clips = [bool(piece.state["grid"][3]) for piece in images]
        gates = {"span": self.gate_span(layout.input_ids[0], not all(clips)), "video": any(clips)}
        return replace(layout, state={**layout.state, **gates})

    def gate_span(self, ids: np.ndarray, pictures: bool) -> list[int]:
        """[start, end) of the first user turn's content: from the first picture, or past the word "user", to its end.

        Clips do not count as pictures here, as in upstream's README. A prompt of this form opens with the mark of a turn, so
        its first id is that mark's.
        """
        ends, starts = np.flatnonzero(ids == self.prompt.id(TURN_END)), np.flatnonzero(ids == ids[0])
        if len(ends) < 2 or len(starts) < 2:
            raise UsageError(
                "the prompt has no system turn followed by a user turn",
                "two <|im_end|> tokens: the expert gates read the first user turn",
                "keep the default system message in front",
            )
        first = np.flatnonzero(ids == self.prompt.id(VISION_START))
        return [int(first[0]) if pictures and len(first) else int(starts[1]) + 2, int(ends[1])]

    def embedding_inputs(
        self, layout: Layout, merged: np.ndarray, raw: np.ndarray, phase: Literal["prefill", "decode"]
    ) -> dict[str, np.ndarray]:
        """The gate's input: with image rows in prefill, without them in decode; never with video rows."""
        if not self.settings["routed"]:
            return {}
        start, end = layout.state["span"]
        rows = merged if phase == "prefill" and not layout.state["video"] else raw
        return {"gate_input": rows[:, start:end].mean(axis=1, dtype=np.float32)}


def check_first_question(messages: Sequence[Message]) -> None:
    """Raise UsageError unless the first turn behind the system turn is a question, and brings a picture where any does.

    The expert gates read that turn alone, from the first picture of the conversation on; without such a span every logit
    would be no number.
    """
    first = 1 if messages[0].role == "system" else 0
    if first >= len(messages) or messages[first].role != "user":
        raise UsageError(
            f"turn {first + 1} is not the user's: the conversation's roles are {[message.role for message in messages]}",
            "the user's first question there, which chooses the experts",
            "put a question in front, or start a new conversation (/reset in chat)",
        )
    bringing = [
        number for number, message in enumerate(messages) if any(isinstance(part, int) for part in message.content())
    ]
    if bringing and bringing[0] > first:
        raise UsageError(
            f"turn {bringing[0] + 1} brings a picture, and turn {first + 1} asked the first question without",
            "a picture with the first question, from which this model chooses its experts",
            "give a picture with the first question of a new conversation (/reset in chat)",
        )
