"""A role is followed by another text where a picture comes first: prompt, chat_template.jinja and the phone agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from export.backends.mlc.conversation_template import conversation_template, phone_parts, picture_message
from export.backends.mlc.conversation_template_test import engine_prompt
from export.prompts.chat_template import chat_template
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn
from runtime_py.prompt.render import render

transformers = pytest.importorskip("transformers")

FORM = PromptFormat(
    name="smolvlm",
    system=SystemTurn("System: ", "<end_of_utterance>\n"),
    roles=ByRole("User:", "Assistant:"),
    after_role=" ",
    ends=ByRole("<end_of_utterance>\n", "<end_of_utterance>\n"),
    before_answer="",
    join="",
    order=Order.USER_FIRST,
    picture=PictureMarks(before="<fake>", row="<image>", after="<fake>", place=Place.INLINE, after_role=""),
)
FRONT = replace(FORM, picture=replace(FORM.picture, place=Place.FRONT))
PICTURE = "<fake><image><fake>"
IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


TALKS: list[tuple[list[Any], str, str]] = [
    (["Hi."], "User: Hi.<end_of_utterance>\n", "User: Hi.<end_of_utterance>\n"),
    ([[text("Hi.")]], "User: Hi.<end_of_utterance>\n", "User: Hi.<end_of_utterance>\n"),
    ([[IMAGE, text("What?")]], f"User:{PICTURE}What?<end_of_utterance>\n", f"User:{PICTURE}What?<end_of_utterance>\n"),
    ([[text("See "), IMAGE]], f"User: See {PICTURE}<end_of_utterance>\n", f"User:{PICTURE}See <end_of_utterance>\n"),
    ([[text(""), IMAGE]], f"User: {PICTURE}<end_of_utterance>\n", f"User:{PICTURE}<end_of_utterance>\n"),
    ([[IMAGE]], f"User:{PICTURE}<end_of_utterance>\n", f"User:{PICTURE}<end_of_utterance>\n"),
    (
        [[IMAGE, text("What?")], "A dog.", "Why?"],
        f"User:{PICTURE}What?<end_of_utterance>\nAssistant: A dog.<end_of_utterance>\nUser: Why?<end_of_utterance>\n",
        f"User:{PICTURE}What?<end_of_utterance>\nAssistant: A dog.<end_of_utterance>\nUser: Why?<end_of_utterance>\n",
    ),
]
"""What user and assistant say in turn, and the published text where pictures stand inline, and in front."""


def messages(talk: list[Any]) -> list[Message]:
    turns, pictures = [], 0
    for number, said in enumerate(talk):
        parts: list[str | int] = []
        for part in [text(said)] if isinstance(said, str) else said:
            parts.append(part.get("text", pictures))
            pictures += "text" not in part
        whole = "".join(part for part in parts if isinstance(part, str))
        turns.append(Message("assistant" if number % 2 else "user", whole, (), tuple(parts)))
    return turns


@pytest.mark.parametrize(("talk", "inline", "front"), TALKS)
@pytest.mark.parametrize("form", [FORM, FRONT], ids=["inline", "front"])
def test_prompt_and_template_are_the_published_text(form: PromptFormat, talk: list[Any], inline: str, front: str) -> None:
    expected = (inline if form is FORM else front) + "Assistant:"
    blocks = {index: [PICTURE] for index in range(sum(part == IMAGE for said in talk for part in said))}
    assert render(form, messages(talk), blocks) == [expected]
    from tokenizers import Tokenizer, models

    library = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    library.chat_template = chat_template(form)
    turns = [{"role": "assistant" if number % 2 else "user", "content": said} for number, said in enumerate(talk)]
    assert library.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected


def test_an_app_sends_the_question_first_where_that_is_exact() -> None:
    sent = picture_message(FORM)
    assert sent == ["{question}<fake>", "{picture}", "<fake>"]
    parts: list[str | int] = [0 if part == "{picture}" else part.replace("{question}", "What?") for part in sent]
    said = engine_prompt(conversation_template(FORM, [2]), [{"role": "user", "content": parts}])
    [asked] = render(FORM, [Message("user", "What?", (0,), ("What?", 0))], {0: ["<fake>", "0", "<fake>"]})
    assert "".join(str(run) for run in said) == asked
    with pytest.raises(UnsupportedModelError, match="puts ' ' behind a role, and the model ''") as caught:
        phone_parts(FORM, Message("user", "What?", (0,)))
    assert "text in front" in caught.value.next_step
    assert picture_message(FRONT) is None
    assert picture_message(replace(FORM, picture=replace(FORM.picture, after_role=None))) == [
        "<fake>",
        "{picture}",
        "<fake>{question}",
    ]


def test_manifests_of_models_without_it_are_as_they_were() -> None:
    plain = replace(FORM, picture=replace(FORM.picture, after_role=None))
    assert "after_role" not in plain.to_json()["picture"] and FORM.to_json()["picture"]["after_role"] == ""
    assert PromptFormat.from_json(plain.to_json()) == plain and PromptFormat.from_json(FORM.to_json()) == FORM
