"""Dialogues about pictures as arrays: ids, answer labels and decoder inputs, all through the family's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.demo.questions import Question
from runtime_py.preprocess.base import ImageInputs, Message, Processor, TokenizerLike

UNLABELLED = -100


@dataclass(frozen=True)
class Dialogue:
    """One conversation, ready for teacher forcing.

    Attributes:
        ids: int64 (tokens,).
        labels: int64 (tokens,), the id that follows where an answer is learnt, else `UNLABELLED`.
        image_rows: bool (tokens,).
        extras: decoder inputs by name, each (..., 1, tokens).
        state: what the processor's ``next_inputs`` needs.
        prompt: tokens in front of the last answer.
    """

    ids: np.ndarray
    labels: np.ndarray
    image_rows: np.ndarray
    extras: Mapping[str, np.ndarray]
    state: Mapping[str, Any]
    prompt: int


class DialogueWriter:
    """Writes dialogues in one family's prompt format.

    Args:
        stop: id that ends an answer.
        before, lead: see `export.demo.recipes.base.Recipe`.
    """

    def __init__(self, processor: Processor, tokenizer: TokenizerLike, stop: int, before: str = "", lead: str = "") -> None:
        self.processor, self.tokenizer, self.stop = processor, tokenizer, stop
        self.before, self.lead = before, lead

    def answer_ids(self, answer: str) -> list[int]:
        """The ids that say ``answer``, cut as behind `before`, and the stop."""
        ids = self.tokenizer.encode(self.before + self.lead + answer)
        return [*ids[len(self.tokenizer.encode(self.before)) :], self.stop]

    def write(self, turns: Sequence[Question], images: Sequence[ImageInputs], answered: bool = True) -> Dialogue:
        """Turns about the picture behind ``images`` (or about none); the last answer is left out unless ``answered``.

        An earlier answer that the prompt format cuts into other tokens than the model speaks is no label.
        """
        messages: list[Message] = []
        spoken: list[tuple[int, list[int]]] = []
        ids = np.zeros((1, 0), dtype=np.int64)
        prompt = 0
        for number, turn in enumerate(turns):
            pictures = (0,) if images and number == 0 else ()
            messages.append(Message("user", turn.text, pictures))
            ids = self.processor.encode(messages, images)
            spoken = [(at, answer) for at, answer in spoken if ids[0, at : at + len(answer) - 1].tolist() == answer[:-1]]
            prompt = ids.shape[1]
            if not answered and number == len(turns) - 1:
                break
            answer = self.answer_ids(turn.answer)
            spoken.append((prompt, answer))
            messages.append(Message("assistant", turn.answer))
            ids = np.concatenate([ids, np.array([answer[:-1]], dtype=np.int64)], axis=1)
        layout = self.processor.layout(ids, images)
        target = np.full(layout.input_ids.shape[1], UNLABELLED, dtype=np.int64)
        expanded = layout.input_ids.shape[1] - ids.shape[1]
        for at, answer in spoken:
            target[expanded + at - 1 : expanded + at - 1 + len(answer)] = answer
        return Dialogue(layout.input_ids[0], target, layout.image_rows, layout.decoder, layout.state, prompt + expanded)


@dataclass(frozen=True)
class Heads:
    """What dialogues begin with, picture by picture or dialogue by dialogue: everything up to the last image row, or all.

    Attributes:
        ids, image_rows: (pictures, head).
        extras: decoder inputs by name, (..., pictures, head).
    """

    ids: Tensor
    image_rows: Tensor
    extras: dict[str, Tensor]


@dataclass(frozen=True)
class Tails:
    """The rest of some dialogues of similar length, filled up on the right.

    Attributes:
        picture: int64 (dialogues,), row of `Heads` that each continues.
        ids, labels: (dialogues, longest tail).
        extras: decoder inputs by name, (..., dialogues, longest tail).
    """

    picture: Tensor
    ids: Tensor
    labels: Tensor
    extras: dict[str, Tensor]


def head_length(dialogue: Dialogue) -> int:
    """Tokens up to and with the last image row; 0 without a picture."""
    places = np.flatnonzero(dialogue.image_rows)
    return int(places[-1]) + 1 if len(places) else 0


def wholes(dialogues: Sequence[Dialogue]) -> Heads:
    """Dialogues that share nothing, from their first token, filled up on the right."""
    longest = max(len(d.ids) for d in dialogues)

    def filled(rows: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([_filled(row, longest, 0) for row in rows], axis=-2))

    return Heads(
        filled([d.ids[None] for d in dialogues]),
        filled([d.image_rows[None] for d in dialogues]),
        {name: filled([d.extras[name] for d in dialogues]) for name in dialogues[0].extras},
    )


def heads(dialogues: Sequence[Dialogue]) -> Heads:
    """The heads of dialogues, one a picture; all equally long."""
    cut = head_length(dialogues[0])
    return Heads(
        torch.from_numpy(np.stack([d.ids[:cut] for d in dialogues])),
        torch.from_numpy(np.stack([d.image_rows[:cut] for d in dialogues])),
        {
            name: torch.from_numpy(np.concatenate([d.extras[name][..., :cut] for d in dialogues], axis=-2))
            for name in dialogues[0].extras
        },
    )


def tails(dialogues: Sequence[Dialogue], pictures: Sequence[int], groups: int = 1) -> list[Tails]:
    """The tails in ``groups`` batches from short to long, so that little of a batch is filling."""
    order = sorted(range(len(dialogues)), key=lambda i: (len(dialogues[i].ids), i))
    parts = np.array_split(np.array(order), groups)
    return [_tails([dialogues[i] for i in part], [pictures[i] for i in part]) for part in parts]


def _tails(dialogues: Sequence[Dialogue], pictures: Sequence[int]) -> Tails:
    cut = head_length(dialogues[0])
    longest = max(len(d.ids) for d in dialogues) - cut

    def filled(rows: list[np.ndarray], value: int) -> Tensor:
        return torch.from_numpy(np.concatenate([_filled(row[..., cut:], longest, value) for row in rows], axis=-2))

    return Tails(
        torch.tensor(list(pictures)),
        filled([d.ids[None] for d in dialogues], 0),
        filled([d.labels[None] for d in dialogues], UNLABELLED),
        {name: filled([d.extras[name] for d in dialogues], 0) for name in dialogues[0].extras},
    )


def _filled(values: np.ndarray, length: int, value: int) -> np.ndarray:
    """``values`` lengthened on the last axis."""
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])], constant_values=value)


def stacked(inputs: Sequence[ImageInputs], part: str) -> dict[str, Tensor]:
    """The vision or connector inputs of several pictures as one batch; unbatched tables are taken once."""
    first = getattr(inputs[0], part)
    return {
        name: torch.from_numpy(np.concatenate([getattr(i, part)[name] for i in inputs]) if name == "pixel_values" else value)
        for name, value in first.items()
    }
