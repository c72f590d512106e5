"""The phone's template, put together by the engine's rules, against the processor's ids.

`engine_prompt` states mlc-ai/mlc-llm's ``CreatePrompt`` (79d603f, cpp/json_ffi/conv_template.cc) once more; every text that
it gives is tokenised by itself with the tokenizer.json of the phone's package, as ``Request::FromUntokenized``
(cpp/serve/request.cc) does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from export.backends.mlc.conversation_template import (
    SystemMessage,
    conversation_template,
    phone_parts,
    prompt_facts,
    system_message,
)
from export.families.registry import families
from export.prompts import conftest
from export.prompts.conftest import SPEAKERS, Conversation, Speaker, speaker_of
from export.prompts.declared import declared_prompt
from export.prompts.published_test import IMAGE, asked, talks, text
from export.source.tensor_source import EmptySource
from runtime_py.errors import UnsupportedModelError, UsageError
from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import Place
from runtime_py.prompt.render import picture_text

KEYS = [
    *("name", "system_template", "system_message", "system_prefix_token_ids", "add_role_after_system_message"),
    *("roles", "role_templates", "messages", "seps", "role_content_sep", "role_empty_sep", "stop_str", "stop_token_ids"),
    *("strip_reasoning_in_history", "function_string", "use_function_calling"),
]
"""mlc-ai/mlc-llm, python/mlc_llm/protocol/conversation_protocol.py, ``Conversation``, in order."""


class EngineError(Exception):
    """What ``CreatePrompt`` returns as an error."""


def engine_prompt(template: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> list[str | int | list[int]]:
    """Texts, images by their number, and ids, as the engine puts a request together. A part is a text or a number."""
    told = [message["content"] for message in messages if message["role"] == "system"]
    said = "".join(told) if told else template["system_message"]
    pending = template["system_template"].replace("{system_message}", said, 1)
    parts: list[str | int | list[int]] = []
    turns = [message for message in messages if message["role"] != "system"]
    for number, message in enumerate([*turns, {"role": "assistant", "content": None}]):
        role, content = message["role"], message["content"]
        if role not in template["roles"]:
            raise EngineError(f'Role "{role}" is not supported')
        if content is None:
            pending += template["roles"][role] + template["role_empty_sep"]
            continue
        seps = template["seps"]
        if template["add_role_after_system_message"] or not pending or number:
            pending += template["roles"][role] + template["role_content_sep"]
        for part in [content] if isinstance(content, str) else content:
            if isinstance(part, str):
                pending += template["role_templates"][role].replace("{" + role + "_message}", part, 1)
                continue
            parts += [pending] if pending else []
            parts.append(part)
            pending = ""
        pending += seps[(1 if role == "assistant" else 0) % len(seps)]
    parts += [pending] if pending else []
    prefix = template["system_prefix_token_ids"]
    return [list(prefix), *parts] if prefix is not None else parts


def engine_ids(speaker: Speaker, talk: Conversation) -> list[int]:
    """Ids of the engine, with the rows of every picture as the processor's prompt marks them."""
    template = conversation_template(speaker.form, speaker.stop_ids)
    messages, images = speaker.turns(talk)
    rows = {image.source: image.rows for image in images}
    first = next(turn for turn in messages if turn.role == "user")
    sent: list[dict[str, Any]] = [{"role": turn.role, "content": _sent(speaker, turn, turn is first)} for turn in messages]
    ids: list[int] = []
    for run in engine_prompt(template, sent):
        if isinstance(run, str):
            ids += speaker.phone(run)
        elif isinstance(run, list):
            ids += run
        else:
            ids += [-200] if speaker.form.picture.spliced else [speaker.words.ids[speaker.form.picture.row]] * rows[run]
    return ids


def _sent(speaker: Speaker, turn: Message, first: bool) -> str | list[str | int]:
    """What an app sends of one turn: a system turn with its marks where the template cannot hold them."""
    if turn.role != "system":
        return phone_parts(speaker.form, turn, first)
    system = speaker.form.system
    assert system is not None
    whole = system_message(speaker.form) is SystemMessage.AS_SENT
    return f"{system.before}{turn.text}{system.after}" if whole else turn.text


def cut_up(speaker: Speaker, talk: Conversation) -> bool:
    """Whether a picture is more than the one piece that the engine embeds."""
    form = speaker.form
    blocks = [block for block in speaker.blocks(talk) if isinstance(block, str)]
    return any(block != picture_text(form, block.count(form.picture.row)) for block in blocks)


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    return speaker_of(request.param, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", SPEAKERS)
def test_any_conversation_is_the_engines_prompt(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    speaker = speaker_of(name, tmp_path_factory.getbasetemp())
    form = speaker.form

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(talks(name))
    def holds(talk: Conversation) -> None:
        shown = any(not isinstance(turn["content"], str) for turn in talk)
        assume(not (shown and form.picture.place is Place.START))  # the engine puts no picture in front of all turns
        assume(form.keeps_history or len(talk) == 1)  # it repeats every turn
        assume(form.ends_empty_turns or all(turn["content"] != "" for turn in talk))  # and ends every turn
        try:
            ids = speaker.ids(talk)
        except UsageError:
            return
        if not cut_up(speaker, talk):
            assert engine_ids(speaker, talk) == ids

    holds()


def test_turns_with_a_picture_and_a_system_turn(speaker: Speaker) -> None:
    """The conversations that every app holds, said out loud."""
    form, several = speaker.form, asked("What is it?", "A dog.", "Why?")
    for count in (1, 3) if form.keeps_history else (1,):
        assert engine_ids(speaker, several[:count]) == speaker.ids(several[:count])
    if form.picture.place is not Place.START:
        shown = [{"role": "user", "content": [IMAGE, text("What is it?")]}, *several[1:]]
        for count in (1, 3):
            if not cut_up(speaker, shown):
                assert engine_ids(speaker, shown[:count]) == speaker.ids(shown[:count])
    if form.system is not None:
        told = [{"role": "system", "content": "Be brief."}, *several]
        assert engine_ids(speaker, told) == speaker.ids(told)


@pytest.mark.parametrize("count", [1, 3])
def test_one_and_two_turns_with_a_picture_that_is_not_cut_up(
    speaker: Speaker, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one form of picture that the engine sends, of every family that can be sent any."""
    monkeypatch.setattr(conftest, "picture", lambda index: np.full((56, 56, 3), 40 + index, np.uint8))
    shown = [{"role": "user", "content": [IMAGE, text("What is it?")]}, *asked("What?", "A dog.", "Why?")[1:]]
    assert not cut_up(speaker, shown)
    if speaker.form.picture.place is Place.START:
        with pytest.raises(UnsupportedModelError, match="inside a turn"):
            engine_ids(speaker, shown[:count])
        return
    assert engine_ids(speaker, shown[:count]) == speaker.ids(shown[:count])


def test_no_family_has_an_empty_template(speaker: Speaker) -> None:
    template = conversation_template(speaker.form, speaker.stop_ids)
    assert list(template) == KEYS
    assert template["name"] not in ("", "LM")
    if not speaker.form.name.endswith("_base"):
        assert template["roles"]["user"] and template["roles"]["assistant"]
    assert template["stop_token_ids"] == list(speaker.stop_ids)


def test_a_role_that_the_model_has_not_is_refused_by_the_engine(speaker: Speaker) -> None:
    template = conversation_template(speaker.form, speaker.stop_ids)
    talk = [{"role": "tool", "content": "3"}]
    if speaker.form.other_role:
        assert engine_prompt(template, talk)
        return
    with pytest.raises(EngineError, match="tool"):
        engine_prompt(template, talk)


def test_the_published_templates_of_the_engine_give_their_documented_text() -> None:
    """The rules themselves: Llama-2's template (python/mlc_llm/conversation_template/llama.py) leaves the first role out."""
    template = {
        "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
        "system_message": "Help.",
        "system_prefix_token_ids": [1],
        "add_role_after_system_message": False,
        "roles": {"user": "<s>[INST]", "assistant": "[/INST]"},
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
        "seps": [" ", " </s>"],
        "role_content_sep": " ",
        "role_empty_sep": " ",
    }
    talk = [*asked("Hi", "Hello", ["See ", 0, " this"]), {"role": "system", "content": "Be kind."}]
    assert engine_prompt(template, talk) == [
        [1],
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] See ",
        0,
        " this [/INST] ",
    ]


def test_what_the_engine_cannot_hold_is_declared(speaker: Speaker) -> None:
    facts, form = prompt_facts(speaker.form), speaker.form
    if form.picture.place is Place.START:
        assert facts["picture_message"] is None
        with pytest.raises(UnsupportedModelError, match="inside a turn"):
            phone_parts(form, Message("user", "why?", (0,)))
    else:
        assert "{picture}" in facts["picture_message"]
    assert facts["system_message"] in ("held", "as-sent", "dropped")
    assert (facts["turns"] == "all") is form.keeps_history


def test_a_family_without_a_prompt_is_refused_by_name() -> None:
    family = families()["wemm"]
    spec = family.spec(family.published_config("", "full"), EmptySource())
    bare = replace(spec, runtime={key: value for key, value in spec.runtime.items() if key != "prompt"})
    with pytest.raises(UnsupportedModelError, match="wemm declares no prompt"):
        declared_prompt(bare)
