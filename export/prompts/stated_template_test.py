"""Templates of checkpoints in every place: the published ones pass, another one is said, a hostile one ends."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.opened import open_folder
from export.families.registry import families
from export.prompts.opening_test import FORM
from export.prompts.stated_template import JINJA, check_template, stated_template
from export.source.hub import DEMO_FOLDER
from export.source.tensor_source import EmptySource
from runtime_py.prompt.format import PromptFormat, prompt_of

QWEN = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
ZEPHYR = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
WORDS = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>"}
PUBLISHED = {"qwen2-vl": QWEN, "awaker2.5-vl": QWEN, "minicpm-llama3-v": LLAMA, "omnilmm-12b": ZEPHYR}
"""Of Qwen/Qwen2-VL-7B-Instruct (less its clips), openbmb/MiniCPM-Llama3-V-2_5, HuggingFaceH4/zephyr-7b-beta. Another family
has its template in its folder, `STATED`."""
STATED = "published_template.jinja"
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""HuggingFaceTB/SmolVLM-Instruct: for lists of parts alone, and with a picture's one row for all of its marks."""


def noted(name: str, folder: Path) -> tuple[str, ...]:
    family = families()[name]
    form = prompt_of(family.spec(family.published_config("", "full"), EmptySource()).runtime)
    return check_template(form, folder, family.template)


def written(place: Path, name: str, template: Any) -> Path:
    value = template if name == JINJA else json.dumps({"chat_template": template, **WORDS})
    (place / name).write_text(value, encoding="utf-8")
    (place / "special_tokens_map.json").write_text(json.dumps(WORDS))
    return place


@pytest.mark.parametrize("name", [name for name, family in families().items() if family.template])
def test_the_published_template_says_nothing(name: str, tmp_path: Path) -> None:
    stated = families()[name].published_table().with_name(STATED)
    assert name in PUBLISHED or stated.is_file(), f"no published template to compare with: write it to {stated}"
    template = PUBLISHED[name] if name in PUBLISHED else stated.read_text(encoding="utf-8")
    assert noted(name, written(tmp_path, "tokenizer_config.json", template)) == ()


def test_a_template_for_lists_of_parts_alone_is_asked_with_them(tmp_path: Path) -> None:
    def notes(form: PromptFormat, template: str) -> tuple[str, ...]:
        return check_template(form, written(tmp_path, JINJA, template), "prompt")

    form = replace(FORM, begin="<|im_start|>")
    assert notes(form, SMOLVLM) == ()
    for old, new in (("': '", "':'"), ("<image>", "<img>"), ("Assistant:", "Bot:"), ("<end_of_utterance>", "<end>")):
        (note,) = notes(form, SMOLVLM.replace(old, new))
        assert "writes another prompt" in note
    other = replace(form, picture=replace(form.picture, after_role=None))
    assert "writes another prompt" in notes(other, SMOLVLM)[0]


FORMS = {
    JINJA: lambda template: template,
    "chat_template.json": lambda template: template,
    "processor_config.json": lambda template: {"default": template, "rag": "x"},
    "tokenizer_config.json": lambda template: [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": template},
    ],
}


@pytest.mark.parametrize("file", FORMS)
def test_another_template_is_said_wherever_it_lies(file: str, tmp_path: Path) -> None:
    changed = QWEN.replace("You are a helpful assistant.", "You see screens.")
    (note,) = noted("qwen2-vl", written(tmp_path, file, FORMS[file](changed)))
    assert note.startswith(f"the template in {file} writes another prompt")
    assert "'You see screens.<|im_end|>" in note and "in place of 'You are a helpful assistant.<|im_end|>" in note


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<|vision_start|>", "<|box_start|>"),
        ("{{ message['role'] }}", "{{ message['role'] | upper }}"),
        ("assistant\n{%", "assistant{%"),
    ],
)
def test_other_marks_roles_and_ends_are_said(old: str, new: str, tmp_path: Path) -> None:
    (note,) = noted("qwen2-vl", written(tmp_path, JINJA, QWEN.replace(old, new)))
    assert "writes another prompt" in note


@pytest.mark.parametrize(
    "template", ["{% for", "{{ 'x' * 10**10 }}", "{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}"]
)
def test_what_cannot_be_rendered_is_said(template: str, tmp_path: Path) -> None:
    (note,) = noted("qwen2-vl", written(tmp_path, JINJA, template))
    assert "cannot be rendered" in note or "writes another prompt" in note


@pytest.mark.slow
def test_a_template_without_end_is_ended(tmp_path: Path) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert "cannot be rendered" in noted("qwen2-vl", written(tmp_path, JINJA, endless))[0]


def test_a_folder_without_a_template_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.prompts.stated_template._rendered", None)
    assert stated_template(tmp_path) is None and noted("qwen2-vl", tmp_path) == ()
    assert stated_template(written(tmp_path, "tokenizer_config.json", [{"name": "rag", "template": "x"}])) is None


def test_a_plan_tells_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in (DEMO_FOLDER / "awaker2.5-vl").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / JINJA).write_text(QWEN.replace("helpful", "terse"))
    with caplog.at_level(logging.ERROR):
        assert [note for note in open_folder(tmp_path).check_tokenizer() if "You are a terse assistant" in note]
