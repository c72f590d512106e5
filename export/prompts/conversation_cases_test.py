"""Conversations as clients send them, for every model: a prompt in its form, or a refusal that says what to do.

What the prompts are is held against the published templates in published_test.py; here is which conversations have one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.prompts.conftest import SPEAKERS, Speaker, picture
from runtime_py.errors import UsageError
from runtime_py.generation import conversation

CASES: dict[str, Any] = json.loads(Path(__file__).with_name("conversation_cases.json").read_text(encoding="utf-8"))

ALL = frozenset(SPEAKERS)
COGVLM2 = frozenset(name for name in SPEAKERS if name.startswith("cogvlm2"))
QWEN2 = frozenset({"qwen2-vl", "awaker2.5-vl"})
MINICPM = frozenset({"minicpm-v", "minicpm-v-2"})
WITHOUT_SYSTEM = COGVLM2 | MINICPM
SEVERAL_PICTURES = QWEN2 | {"minicpm-llama3-v"}
IN_TURN = ALL - SEVERAL_PICTURES - {"wemm"}
"""Models whose prompt asks for question and answer in turn."""

MARKED = MINICPM | {"minicpm-llama3-v"}
GATES = frozenset({"awaker2.5-vl"})
"""Its experts are chosen by the first question."""

REFUSED: dict[str, dict[str, frozenset[str]]] = {
    "instructions first": {"turn 1 is a system turn": WITHOUT_SYSTEM},
    "instructions twice": {
        "turn 1 is a system turn": WITHOUT_SYSTEM,
        "turn 3 is a system turn": ALL - WITHOUT_SYSTEM - QWEN2,
    },
    "two pictures among texts": {"turn 1 brings picture number 2": ALL - SEVERAL_PICTURES},
    "a picture behind its text": {},
    "a picture with the second question": {
        "turn 3 brings a picture, and turn 1 asked the first question without": MINICPM | GATES | {"omnilmm-12b"}
    },
    "a picture in an answer": {
        "turn 2 (assistant) brings a picture": ALL - QWEN2,
        "turn 2 brings a picture, and turn 1 asked the first question without": GATES,
    },
    "several texts": {},
    "a mark in the text": {"the text of turn 1 (user) holds <image>": MARKED},
    "a closing mark in the text": {"the text of turn 1 (user) holds </image>": MARKED},
    "a placeholder in the text": {
        "the text of turn 1 (user) holds <|image_pad|>": QWEN2,
        "the text of turn 1 (user) holds <im_patch>": frozenset({"omnilmm-12b"}),
    },
    "an unknown role": {"turn 2 has the role 'tool'": ALL - QWEN2},
    "a role that is no name": {"turn 1 has the role": ALL},
    "an empty question": {},
    "no parts": {},
    "null": {"turn 1 (user) has the content None": ALL},
    "a null part": {"part 2 of turn 1 is None": ALL},
    "a null text": {"part 1 of turn 1 is": ALL},
    "an address for a picture": {"part 1 of turn 1 is": ALL},
    "the answer first": {"turn 1 is not the user's": ALL - {"qwen2-vl"}},
    "two questions in a row": {"turn 2 is the user's, like the one before it": IN_TURN},
    "an answer last": {"turn 2, the last, is the assistant's": IN_TURN},
    "instructions alone": {
        "turn 1 is a system turn": WITHOUT_SYSTEM,
        "turn 2 is not the user's": ALL - WITHOUT_SYSTEM - {"qwen2-vl"},
    },
    "no turn": {"the conversation is empty": ALL},
    "more pictures named than given": {"turn 1 speaks of more than the 1 pictures given": ALL},
}
"""Of each conversation, what is said to the models that have no form for it; the others have a prompt."""


def test_every_conversation_is_judged() -> None:
    assert set(REFUSED) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_conversation_has_a_prompt_or_a_refusal_that_says_what_to_do(speaker: Speaker, case: str) -> None:
    told = [words for words, names in REFUSED[case].items() if speaker.name in names]
    asked = CASES[case]
    pictures = [picture(index) for index in range(asked["pictures"])]
    try:
        turns, given = conversation.read(asked["messages"], pictures)
        speaker.processor.prompt.check(turns, len(given))
        images = speaker.processor.images(given)
        ids = speaker.processor.encode(turns, images)
    except UsageError as refusal:
        assert told and told[0] in refusal.what, refusal
        assert refusal.expected and refusal.next_step
        return
    assert not told, told
    layout = speaker.processor.layout(ids, images)
    assert int(layout.image_rows.sum()) == sum(image.rows for image in images)
