"""Ids of marks by their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.families.config.section import Section
from export.families.config.vocabulary import added_tokens, marks_of
from runtime_py.errors import CheckpointError

PUBLISHED = {"<|im_start|>": 151644, "<|im_end|>": 151645}


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8-sig")
    return folder


def test_every_table_of_added_tokens_is_read(tmp_path: Path) -> None:
    rows = [{"id": 5, "content": "<a>"}, {"id": 6, "content": "<b>"}]
    write(tmp_path, tokenizer={"added_tokens": rows}, added_tokens={"<c>": 7})
    write(tmp_path, tokenizer_config={"added_tokens_decoder": {"8": {"content": "<d>"}}})
    assert added_tokens(tmp_path) == {"<a>": 5, "<b>": 6, "<c>": 7, "<d>": 8}
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert added_tokens(tmp_path) == {"<a>": 5, "<b>": 6, "<c>": 7, "<d>": 8}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": {"added_tokens": 5}},
        {"tokenizer": {"added_tokens": [5]}},
        {"tokenizer": {"added_tokens": [{"id": "5", "content": "<a>"}]}},
        {"tokenizer": {"added_tokens": [{"id": 5}]}},
        {"added_tokens": {"<a>": -1}},
        {"added_tokens": {"<a>": None}},
        {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<a>"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"\u0665": {"content": "<a>"}}}},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
    ],
)
def test_a_table_that_is_none_is_one_error(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=next(iter(files))):
        added_tokens(write(tmp_path, **files))


def test_marks_are_looked_up_and_never_worked_out() -> None:
    table = Section({"added_tokens": {"<|im_start|>": 3, "<|im_end|>": 9}})
    assert marks_of(table, PUBLISHED, 10) == {"<|im_start|>": 3, "<|im_end|>": 9}
    assert marks_of(Section({}), PUBLISHED, 152064) == PUBLISHED
    assert marks_of(Section({}), PUBLISHED, 10) == {}, "another vocabulary"
    stated = {"<|im_end|>": 7, "<|image_pad|>": 8}
    assert marks_of(Section({}), PUBLISHED, 10, stated) == stated
    assert marks_of(table, PUBLISHED, 10, stated) == {"<|im_start|>": 3, "<|im_end|>": 9, "<|image_pad|>": 8}
    with pytest.raises(CheckpointError, match=r"no token <\|im_end\|>"):
        marks_of(Section({"added_tokens": {"<|im_start|>": 3}}), PUBLISHED, 10)
    with pytest.raises(CheckpointError, match="im_end"):
        marks_of(table, PUBLISHED, 9)
