"""Packages of schema 1 keep their prompts."""

from __future__ import annotations

import pytest

from runtime_py.prompt.format import PromptFormat
from runtime_py.prompt.undeclared import with_prompt


@pytest.mark.parametrize(
    ("processor", "settings", "marks"),
    [
        ("minicpm_v", {"variant": "2.0", "tokens": {"bos": 1, "image_start": 101, "eos": 2}}, {"<s>": 1, "<image>": 101}),
        ("minicpm_llama3_v", {"tokens": {"bos": 3, "eot": 4}}, {"<|begin_of_text|>": 3, "<|eot_id|>": 4}),
        ("omnilmm_12b", {"token_ids": {"im_start_token": 9}, "bos": 1}, {"<s>": 1, "<im_start>": 9}),
        ("omnilmm_12b", {"token_ids": {}, "bos": 1}, {"<s>": 1}),
        ("wemm", {"bos": 1}, {"<s>": 1}),
        ("xverse_v", {"prompt_template": "Human: {}\nAssistant: ", "end": "<|endoftext|>"}, {}),
        ("awaker2_5_vl", {"im_start": 5, "image_pad": 6}, {"<|im_start|>": 5, "<|image_pad|>": 6}),
        ("cogvlm2", {"template": "base", "bos": 1, "pad": 2}, {"<|begin_of_text|>": 1, "<|reserved_special_token_0|>": 2}),
    ],
)
def test_settings_of_schema_1_imply_a_prompt(processor: str, settings: dict[str, object], marks: dict[str, int]) -> None:
    completed = with_prompt(processor, settings)
    assert {key: completed[key] for key in settings} == settings
    form = PromptFormat.from_json(completed["prompt"])
    assert form.marks == marks
    assert form.name.startswith(("qwen2_vl", processor))


@pytest.mark.parametrize(
    ("processor", "settings"),
    [("unheard_of", {}), ("minicpm_v", {"variant": "3.0"}), ("xverse_v", {"prompt_template": "User: {}\nBot: "})],
)
def test_others_are_left_as_they_are(processor: str, settings: dict[str, object]) -> None:
    assert with_prompt(processor, settings) is settings
