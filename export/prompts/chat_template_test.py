"""chat_template.jinja, rendered by transformers, against the processor's ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from export.prompts.chat_template import FILE, chat_template, write_chat_template
from export.prompts.conftest import DEMOS, SPEAKERS, Conversation, Speaker, ids_of, speaker_of
from export.prompts.published_test import IMAGE, asked, talks, text
from runtime_py.errors import UsageError
from runtime_py.preprocess.spliced import IMAGE as SPLICED
from runtime_py.prompt.format import Place
from runtime_py.prompt.render import picture_text

transformers = pytest.importorskip("transformers")


def rendered(speaker: Speaker, talk: Conversation) -> str:
    """The prompt's text by ``apply_chat_template`` of a transformers tokenizer that holds the template."""
    from tokenizers import Tokenizer, models

    library = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    library.chat_template = chat_template(speaker.form)
    return str(library.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))


def rendered_ids(speaker: Speaker, talk: Conversation) -> list[int]:
    """Ids of the rendered text, with what stands for each picture in place of its one placeholder."""
    form, said, runs = speaker.form, rendered(speaker, talk), []
    one = form.picture.row if form.picture.spliced else picture_text(form, 1)
    for block in speaker.blocks(talk):
        before, _, said = said.partition(one)
        runs += [before, block]
    return ids_of([*runs, said], speaker.library)


@pytest.mark.parametrize("name", SPEAKERS)
def test_any_conversation_renders_to_the_processors_ids(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    speaker = speaker_of(name, tmp_path_factory.getbasetemp())
    one = speaker.form.picture.row

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(talks(name))
    def holds(talk: Conversation) -> None:
        try:
            ids = speaker.ids(talk)
        except UsageError:
            return
        if one not in str(talk):
            assert rendered_ids(speaker, talk) == ids

    holds()


def test_texts_without_pictures_render_to_the_same_text_in_every_form(speaker: Speaker) -> None:
    plain, listed = asked("One?", "1", "Two?"), asked([text("One?")], [text("1")], [text("Two?")])
    assert rendered(speaker, plain) == rendered(speaker, listed)


def test_the_answers_opening_is_left_out_unless_asked_for(speaker: Speaker) -> None:
    from tokenizers import Tokenizer, models

    library = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    library.chat_template = chat_template(speaker.form)
    closed = library.apply_chat_template(asked("One?"), tokenize=False, add_generation_prompt=False)
    opened = rendered(speaker, asked("One?"))
    assert opened.endswith(speaker.form.answer)
    assert closed == (opened if speaker.form.always_asks else opened.removesuffix(speaker.form.answer))


@pytest.mark.parametrize(
    "talk",
    [
        asked("a", "b", "c")[1:],
        [{"role": "narrator", "content": "once"}],
        asked([IMAGE, text("a")], "b", [IMAGE, text("c")]),
    ],
)
def test_what_the_processor_refuses_the_template_refuses(speaker: Speaker, talk: Conversation) -> None:
    try:
        speaker.ids(talk)
    except UsageError:
        if speaker.form.keeps_history and speaker.name != "awaker2.5-vl":
            with pytest.raises(Exception, match=r"[Rr]oles|at most"):
                rendered(speaker, talk)
        return
    rendered(speaker, talk)


@pytest.mark.parametrize("name", ["awaker2.5-vl", "cogvlm2", "xverse-v"])
def test_transformers_finds_it_in_a_folder(name: str, tmp_path: Path) -> None:
    speaker, place = speaker_of(name, tmp_path), DEMOS / name
    for file in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / file).write_bytes((place / file).read_bytes())
    assert write_chat_template(speaker.form, tmp_path) == [Path(FILE)]
    library = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    talk: Any = asked("What color is it?", "red", "图片里有什么？")
    ids = library.apply_chat_template(talk, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids == speaker.ids(talk)


def test_a_placeholder_stands_for_every_picture(speaker: Speaker) -> None:
    said = rendered(speaker, asked([IMAGE, text("Where?")]))
    mark = speaker.form.picture.row
    assert said.count(mark) == 1
    if speaker.form.picture.place is Place.START:
        assert said.startswith(speaker.form.begin + mark)
    assert SPLICED not in speaker.library(said)
