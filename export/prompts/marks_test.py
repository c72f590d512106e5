"""Marks of the prompt are numbered by the tokenizer; the config and the published ids stand in only where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.recognised import recognise_checkpoint
from export.prompts.conftest import DEMOS
from export.specs import ModelSpec
from runtime_py.prompt.format import prompt_of


def spec_with(folder: Path, name: str, tokenizer: bool = True, **changes: Any) -> ModelSpec:
    """The spec of a demo checkpoint with some keys of its config.json changed."""
    shutil.copytree(DEMOS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    if not tokenizer:
        (folder / "tokenizer.json").unlink()
    recognised = recognise_checkpoint(folder)
    return recognised.spec(recognised.open_source())


@pytest.mark.parametrize("ends", [676, 674, [676, 674], [674], None])
def test_turn_marks_do_not_follow_the_end_token(ends: object, tmp_path: Path) -> None:
    spec = spec_with(tmp_path / "case", "awaker2.5-vl", eos_token_id=ends)
    marks = prompt_of(spec.runtime).marks
    assert (marks["<|im_start|>"], marks["<|im_end|>"], marks["<|endoftext|>"]) == (675, 676, 674)
    assert sorted(spec.generation["stop_ids"]) == [674, 676]


@pytest.mark.parametrize(("ends", "first"), [(2, 2), ([2], 2), ([2, 5], 2), (5, 5)])
def test_end_tokens_that_the_config_states_stay(ends: object, first: int, tmp_path: Path) -> None:
    stop_ids = spec_with(tmp_path / "case", "omnilmm-12b", eos_token_id=ends).generation["stop_ids"]
    assert stop_ids[0] == first
    assert 2 in stop_ids
    assert all(isinstance(token, int) for token in stop_ids)


def test_without_a_tokenizer_the_config_numbers_what_it_can(tmp_path: Path) -> None:
    marks = prompt_of(spec_with(tmp_path / "case", "awaker2.5-vl", tokenizer=False).runtime).marks
    assert (marks["<|endoftext|>"], marks["<|image_pad|>"]) == (674, 686)
    assert not {"<|im_start|>", "<|im_end|>"} & set(marks), "no key of the config names them, and no other id tells them"


def test_a_tokenizer_that_numbers_marks_otherwise_wins(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(DEMOS / "cogvlm2", folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|reserved_special_token_0|>", "<|moved|>").replace("_1|>", "_0|>"))
    recognised = recognise_checkpoint(folder)
    assert prompt_of(recognised.spec(recognised.open_source()).runtime).marks["<|reserved_special_token_0|>"] == 697


def test_an_answer_stops_where_the_prompt_says(tmp_path: Path) -> None:
    assert spec_with(tmp_path / "case", "cogvlm2", eos_token_id=None).generation["stop_ids"] == [695]
