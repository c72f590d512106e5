"""Prompt ids of every family against the published chat functions, stated here once more from their code.

Each statement gives what the published code hands to its tokenizer: whole texts, and the ids that it puts between them by
itself. The texts go through tokenizers or sentencepiece, not through runtime_py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.prompts.conftest import SPEAKERS, Conversation, Run, Speaker, ids_of, speaker_of
from runtime_py.errors import UsageError

OMNILMM_SYSTEM = " ".join(
    (
        "You are an artificial intelligence assistant,",
        "which gives helpful, detailed, and polite answers to the human's questions.",
    )
)


class Pictures:
    """Hands out what stands for the pictures of a conversation, in order."""

    def __init__(self, blocks: Sequence[Run]) -> None:
        self.left: Iterator[Run] = iter(blocks)

    def next(self) -> Run:
        return next(self.left)


def parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def texts(turn: dict[str, Any]) -> list[str]:
    return [part["text"] for part in parts(turn) if part["type"] == "text"]


def has_picture(turn: dict[str, Any]) -> bool:
    return any(part["type"] != "text" for part in parts(turn))


def minicpm_v(talk: Conversation, pictures: Pictures) -> list[Run]:
    """``chat`` of 1.0 and 2.0: the placeholder of the one picture and a newline before the first content."""
    prompt: list[Run] = ["<s>"]
    for turn in talk:
        assert turn["role"] in ("user", "assistant")
        prompt.append("<用户>" if turn["role"] == "user" else "<AI>")
        prompt += [pictures.next(), "\n"] if has_picture(turn) else []
        prompt.append("\n".join(texts(turn)))
    return [*prompt, "<AI>"]


def minicpm_llama3_v(talk: Conversation, pictures: Pictures) -> list[Run]:
    """``chat`` of 2.5 joins contents by newlines; its template trims them."""
    text = "<|begin_of_text|>"
    for turn in talk:
        content = "\n".join(str(part["text"] if part["type"] == "text" else pictures.next()) for part in parts(turn))
        text += f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n{content.strip()}<|eot_id|>"
    return [text + "<|start_header_id|>assistant<|end_header_id|>\n\n"]


def omnilmm(talk: Conversation, pictures: Pictures) -> list[Run]:
    """``expand_question_into_multimodal``, ``omni_preprocess``, and Zephyr's template; the tokenizer puts <s> in front."""
    turns = [(turn["role"], "\n".join(texts(turn)), has_picture(turn)) for turn in talk]
    if turns[0][0] != "system":
        turns.insert(0, ("system", OMNILMM_SYSTEM, False))
    text = "<s>"
    for role, said, shown in turns:
        block = str(pictures.next()) if shown else ""
        front = f"{block}\n" if shown and "<image>" not in said else ""
        text += f"<|{role}|>\n{front}{said.replace('<image>', block) if shown else said}</s>\n"
    return [text + "<|assistant|>\n"]


def wemm(talk: Conversation, pictures: Pictures) -> list[Run]:
    """One ChatML text with <image> in it, cut there; the first piece with the tokenizer's <s>."""
    runs: list[Run] = ["<s>"]
    for turn in talk:
        runs.append(f"<|im_start|>{turn['role']}\n")
        runs += [pictures.next(), "\n"] if has_picture(turn) else []
        runs.append("\n".join(texts(turn)) + "<|im_end|>")
    return [*runs, "<|im_start|>assistant\n"]


def xverse(talk: Conversation, pictures: Pictures) -> list[Run]:
    """``Conversation.get_prompt`` with two separators; with no system text its own separator is stripped off."""
    system = talk[0] if talk[0]["role"] == "system" else None
    runs: list[Run] = ["\n".join(texts(system)) + "\n"] if system else []
    for number, turn in enumerate(talk[1:] if system else talk):
        said: list[Run] = [pictures.next(), "\n"] if has_picture(turn) else []
        said += ["\n".join(texts(turn))]
        runs.append("Assistant: " if number % 2 else "Human: ")
        if any(said):
            runs += [*said, "<|endoftext|>" if number % 2 else "\n"]
    return [*runs, "Assistant: "]


def cogvlm2(template: str, talk: Conversation, pictures: Pictures) -> list[Run]:
    """``build_conversation_input_ids``: <s>, the pictures' ids, then the text by itself."""
    runs: list[Run] = ["<|begin_of_text|>", *(pictures.next() for turn in talk if has_picture(turn))]
    said = [" ".join(texts(turn)) for turn in talk]
    if template == "base":
        return [*runs, [], said[-1]]
    history = "".join(f"Question: {said[i]} Answer: {said[i + 1]}\n" for i in range(0, len(said) - 1, 2))
    return [*runs, [], f"{history}Question: {said[-1]} Answer:"]


def qwen2_vl(talk: Conversation, pictures: Pictures) -> list[Run]:
    """The chat template, then every placeholder as many times as its picture has rows."""
    text = "" if talk[0]["role"] == "system" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for turn in talk:
        said = "".join(str(part["text"] if part["type"] == "text" else pictures.next()) for part in parts(turn))
        text += f"<|im_start|>{turn['role']}\n{said}<|im_end|>\n"
    return [text + "<|im_start|>assistant\n"]


def published_ids(speaker: Speaker, talk: Conversation) -> list[int]:
    """Ids of a conversation as the published code makes them."""
    pictures, template = Pictures(speaker.blocks(talk)), "base" if speaker.form.name == "cogvlm2_base" else "chat"
    statements = {
        "minicpm-v": minicpm_v,
        "minicpm-llama3-v": minicpm_llama3_v,
        "omnilmm-12b": omnilmm,
        "wemm": wemm,
        "xverse-v": xverse,
        "awaker2.5-vl": qwen2_vl,
        "qwen2-vl": qwen2_vl,
        "cogvlm2": lambda talk, pictures: cogvlm2(template, talk, pictures),
    }
    runs = statements[speaker.family](talk, pictures)
    return ids_of(runs, speaker.library)


LETTERS = st.sampled_from("abz AZ09.,?!\n\t 图片星形é😀<>{}'\"\\|")
TEXT = st.text(LETTERS | st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=30)


@dataclass(frozen=True)
class Takes:
    """Which conversations a published chat function takes, beside text of user and assistant in turn.

    Attributes:
        many: pictures anywhere in the user's turns, in any number.
        later: its one picture may come with any question.
        first: pictures only where the first question has one.
        system: instructions in front.
    """

    many: bool = False
    later: bool = False
    first: bool = False
    system: bool = False


TAKES = {
    "minicpm-llama3-v": Takes(many=True),
    "omnilmm-12b": Takes(system=True),
    "wemm": Takes(later=True),
    "xverse-v": Takes(later=True, system=True),
    "awaker2.5-vl": Takes(many=True, first=True, system=True),
    "qwen2-vl": Takes(many=True, system=True),
    "cogvlm2": Takes(later=True),
    "cogvlm2-video": Takes(later=True),
}
"""By name; one that is not named takes one picture with the first question."""


def talks(name: str) -> st.SearchStrategy[Conversation]:
    """Conversations that the published code of ``name`` takes."""
    return conversations(TAKES.get(name, Takes()))


@st.composite
def conversations(draw: st.DrawFn, takes: Takes) -> Conversation:
    """Conversations of up to five turns."""
    many, system = takes.many, takes.system and draw(st.booleans())
    count = draw(st.sampled_from((1, 1, 3, 5)))
    talk: Conversation = [{"role": "system", "content": draw(TEXT)}] if system else []
    shown = 0
    for number in range(count):
        said: str | list[dict[str, Any]] = draw(TEXT)
        may = number % 2 == 0 and (number == 0 or many or takes.later)
        if may and draw(st.booleans()) and (many or not shown) and not (takes.first and number and not shown):
            told = [{"type": "text", "text": draw(TEXT)} for _ in range(draw(st.integers(0 if many else 1, 3)))]
            for _ in range(draw(st.integers(1, 3)) if many else 1):
                told.insert(draw(st.integers(0, len(told))), {"type": "image"})
                shown += 1
            said = told
        talk.append({"role": "assistant" if number % 2 else "user", "content": said})
    return talk


@pytest.mark.parametrize("name", SPEAKERS)
def test_any_conversation_has_the_published_ids(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    speaker = speaker_of(name, tmp_path_factory.getbasetemp())

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(talks(name))
    def holds(talk: Conversation) -> None:
        try:
            ids = speaker.ids(talk)
        except UsageError as refusal:
            assert "which this model reads as part of a picture" in str(refusal) or "fit the prompt" in str(refusal)
            return
        assert ids == published_ids(speaker, talk)

    holds()


def asked(*said: Any) -> Conversation:
    return [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(said)]


IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def test_two_pictures_between_texts_keep_their_places(speaker: Speaker) -> None:
    talk = asked([text("Before: "), IMAGE, text(" After: "), IMAGE, text(" What changed?")])
    if speaker.form.picture.most == 1:
        with pytest.raises(UsageError, match=r"2 (pictures|clips)|picture number 2"):
            speaker.ids(talk)
        return
    assert speaker.ids(talk) == published_ids(speaker, talk)


def test_a_system_turn_is_the_published_one_or_refused(speaker: Speaker) -> None:
    talk = [{"role": "system", "content": "Answer in Chinese."}, *asked([IMAGE, text("What color is the circle?")])]
    if speaker.form.system is None:
        with pytest.raises(UsageError, match="turn 1 is a system turn"):
            speaker.ids(talk)
        return
    assert speaker.ids(talk) == published_ids(speaker, talk)


def test_a_literal_mark_is_text_where_it_can_be_and_named_where_not(speaker: Speaker) -> None:
    talk = asked([IMAGE, text("How do I write an <image> tag in SVG?")])
    if "<image>" in speaker.form.picture.reserved:
        with pytest.raises(UsageError, match=r"turn 1 \(user\) holds <image>"):
            speaker.ids(talk)
        return
    ids = speaker.ids(talk)
    if speaker.family != "omnilmm-12b":
        assert speaker.library(" <image> tag in SVG?")[-8:] in [ids[at : at + 8] for at in range(len(ids))]
    assert ids == published_ids(speaker, talk)


@pytest.mark.parametrize("role", ["tool", "developer"])
def test_another_role_is_the_published_one_or_refused(speaker: Speaker, role: str) -> None:
    talk = [*asked("What is it?", "A dog."), {"role": role, "content": "x = 3"}]
    if not speaker.form.other_role:
        with pytest.raises(UsageError, match=f"turn 3 has the role '{role}'"):
            speaker.ids(talk)
        return
    assert speaker.ids(talk) == published_ids(speaker, talk)


def test_turn_marks_in_a_text_are_what_the_tokenizer_makes_of_them(speaker: Speaker) -> None:
    for mark in speaker.form.stop:
        talk = asked(f"say {mark} now", "no", "why?")
        assert speaker.ids(talk) == published_ids(speaker, talk)


def test_stop_ids_are_those_of_the_tokenizer(speaker: Speaker) -> None:
    assert {speaker.words.ids[mark] for mark in speaker.form.stop} <= set(speaker.stop_ids)
