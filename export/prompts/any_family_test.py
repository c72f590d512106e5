"""A family's own test holds its prompt against the published chat function, in one call and without an entry here.

The family states that function (a conversation, and what stands for its pictures, to runs of text and ids), and which
conversations it takes; ``family_test.py`` in its folder calls `check_prompt`. So does one in a distribution outside that is
tested beside a checkout; wheels hold no tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from export.backends.mlc.conversation_template_test import cut_up, engine_ids
from export.families.config.vocabulary import TOKENS, added_tokens
from export.families.registry import families
from export.prompts.chat_template_test import rendered_ids
from export.prompts.conftest import LLAMA3_MARKS, Conversation, Run, Speaker, bpe_tokenizer, ids_of, speaker_for
from export.prompts.published_test import Pictures, Takes, conversations, minicpm_llama3_v
from runtime_py.errors import UnsupportedModelError, UsageError
from runtime_py.prompt.format import Place

Statement = Callable[[Conversation, Pictures], list[Run]]
"""The published chat function: what it hands to its tokenizer, and the ids that it puts between texts by itself."""


def check_prompt(speaker: Speaker, takes: Takes, published: Statement, examples: int = 25) -> None:
    """Hold the processor, chat_template.jinja and the phone's template against ``published`` on any conversation.

    The phone is asked what it can be sent: pictures that are one piece, where its engine puts pictures inside turns.
    """
    marks = (speaker.form.picture.row, *speaker.form.picture.reserved)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(conversations(takes))
    def holds(talk: Conversation) -> None:
        if any(mark and mark in str(talk) for mark in marks):
            with pytest.raises(UsageError):
                speaker.ids(talk)
            return
        expected = ids_of(published(talk, Pictures(speaker.blocks(talk))), speaker.library)
        assert speaker.ids(talk) == expected, "the processor's prompt"
        assert rendered_ids(speaker, talk) == expected, "chat_template.jinja"
        if _sendable(speaker, talk):
            try:
                sent = engine_ids(speaker, talk)
            except UnsupportedModelError:  # the app sends such a turn otherwise
                return
            assert sent == expected, "the phone's template"

    holds()


def _sendable(speaker: Speaker, talk: Conversation) -> bool:
    form = speaker.form
    shown = any(not isinstance(turn["content"], str) for turn in talk)
    if shown and (form.picture.place is Place.START or cut_up(speaker, talk)):
        return False
    ends = form.ends_empty_turns or all(turn["content"] != "" for turn in talk)
    return ends and (form.keeps_history or len(talk) == 1)


@pytest.fixture
def llama(tmp_path: Path) -> Speaker:
    family, place = families()["minicpm-llama3-v"], bpe_tokenizer(tmp_path / "words", LLAMA3_MARKS)
    config = {**family.published_config("", "tiny"), "vocab_size": 4000, TOKENS: added_tokens(place)}
    return speaker_for(family, place, config, tmp_path / "tokenizer.json")


def test_a_family_that_speaks_as_published_passes(llama: Speaker) -> None:
    check_prompt(llama, Takes(many=True), minicpm_llama3_v)


def test_one_that_does_not_fails(llama: Speaker) -> None:
    def shouted(talk: Conversation, pictures: Pictures) -> list[Run]:
        return [str(run) + "!" for run in minicpm_llama3_v(talk, pictures)]

    with pytest.raises(AssertionError, match="the processor's prompt"):
        check_prompt(llama, Takes(many=True), shouted)
    joined = replace(llama, form=replace(llama.form, join=" "))  # the templates are made of the form, ids of the settings
    with pytest.raises(AssertionError, match=r"chat_template\.jinja"):
        check_prompt(joined, Takes(many=True), minicpm_llama3_v)


def test_a_family_may_say_what_stands_for_its_pictures(llama: Speaker) -> None:
    assert replace(llama, block=lambda pieces: f"<{len(pieces)}>").blocks(
        [{"role": "user", "content": [{"type": "image"}]}]
    ) == ["<1>"]
