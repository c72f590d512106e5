"""Labels stand where the answers are predicted, and batches keep every token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.demo.dialogues import UNLABELLED, Dialogue, head_length, heads, stacked, tails
from export.demo.questions import Question
from export.demo.recipes.minicpm_v import QUERIES, SIDE
from export.demo.reference import Reference
from runtime_py.preprocess.base import ImageInputs

COLOUR = Question("colour", "en", "What color is the star?", "red")
PLACE = Question("position", "zh", "它在哪里？", "左上角")
EOS = 2


@pytest.fixture(scope="module")
def reference(untrained: Path) -> Reference:
    return Reference.load(untrained)


@pytest.fixture(scope="module")
def images(reference: Reference) -> list[ImageInputs]:
    return reference.processor.images([np.zeros((50, 70, 3), np.uint8)])


def learnt(dialogue: Dialogue, reference: Reference) -> list[str]:
    """The answers that the labels spell, cut at the stop id."""
    ids = dialogue.labels[dialogue.labels != UNLABELLED].tolist()
    ends = [i for i, token in enumerate(ids) if token == EOS]
    return [reference.tokenizer.decode(ids[a:b]) for a, b in zip([0, *[e + 1 for e in ends]], ends, strict=False)]


def test_one_turn_is_the_published_prompt_and_its_answer(reference: Reference, images: list[ImageInputs]) -> None:
    dialogue = reference.writer.write([COLOUR], images)
    encode = reference.tokenizer.encode
    prompt = [1, *encode("<用户>"), 101, *[0] * QUERIES, 102, *encode("\n" + COLOUR.text), *encode("<AI>")]
    assert dialogue.ids.tolist() == [*prompt, *encode("red")]
    assert np.flatnonzero(dialogue.image_rows).tolist() == list(range(5, 5 + QUERIES))
    assert dialogue.labels[len(prompt) - 1 :].tolist() == [*encode("red"), EOS]
    assert (dialogue.labels[: len(prompt) - 1] == UNLABELLED).all()


def test_two_turns_label_both_answers(reference: Reference, images: list[ImageInputs]) -> None:
    dialogue = reference.writer.write([COLOUR, PLACE], images)
    assert learnt(dialogue, reference) == ["red", "左上角"]
    labelled = np.flatnonzero(dialogue.labels != UNLABELLED)
    following = dialogue.ids[labelled[labelled + 1 < len(dialogue.ids)] + 1]
    assert (following == dialogue.labels[labelled[: len(following)]]).sum() == len(labelled) - 2


def test_an_unanswered_dialogue_ends_where_the_answer_begins(reference: Reference) -> None:
    dialogue = reference.writer.write([COLOUR], [], answered=False)
    assert (dialogue.labels == UNLABELLED).all()
    assert dialogue.ids[-3:].tolist() == reference.tokenizer.encode("<AI>")
    assert not dialogue.image_rows.any()
    assert head_length(dialogue) == 0


def test_heads_and_tails_hold_every_token_once(reference: Reference, images: list[ImageInputs]) -> None:
    dialogues = [reference.writer.write(turns, images) for turns in ([COLOUR], [PLACE], [COLOUR, PLACE], [PLACE, COLOUR])]
    head = heads(dialogues[::2])
    parts = tails(dialogues, [0, 0, 1, 1], groups=2)
    assert head.ids.shape == (2, 5 + QUERIES)
    assert bool(head.image_rows[:, -1].all())
    sequences = []
    for part in parts:
        for row, picture in enumerate(part.picture.tolist()):
            position = part.extras["position_ids"][row]
            length = int(position.argmax()) + 1
            sequences.append((picture, [*head.ids[picture].tolist(), *part.ids[row, :length].tolist()]))
            assert (part.labels[row, length:] == UNLABELLED).all()
            assert position[0] == head.ids.shape[1]
    wanted = [(number // 2, dialogue.ids.tolist()) for number, dialogue in enumerate(dialogues)]
    assert sorted(sequences) == sorted(wanted)


def test_pictures_are_stacked_in_order(reference: Reference) -> None:
    pieces = reference.processor.images([np.full((20, 20, 3), value, np.uint8) for value in (0, 255)])
    pixels = stacked(pieces, "vision")["pixel_values"]
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(pixels[:, 0, 0, 0], torch.tensor([-1.0, 1.0]))
