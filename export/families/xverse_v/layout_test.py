"""Places of XVERSE-V's parts that a checkpoint may name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from export.families.config.settings import GENERATION
from export.families.xverse_v.layout import adapters_file, joined_config, parted_files, places_of
from runtime_py.errors import CheckpointError


def test_published_places() -> None:
    assert places_of({}) == ("clip-vit", "xverse-llm", "adapters")
    assert places_of({"vit_path": "./parts/clip"})[0] == "parts/clip"
    assert places_of({"llama_model": "a/" * 7 + "b"})[1] == "a/" * 7 + "b"
    assert adapters_file({}) == "adapters/adapter_and_lora.bin" and adapters_file({"ckpt": "own/x.bin"}) == "own/x.bin"


@pytest.mark.parametrize(
    "place", ["/etc", "../other", "a/../../b", "", ".", "a\0b", "9" * 300, "é" * 128, "\ud800", "a/" * 9], ids=ascii
)
def test_a_place_outside_or_without_a_name_is_refused(place: str) -> None:
    with pytest.raises(CheckpointError, match="vit_path"):
        places_of({"vit_path": place})


def written(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_three_parts_become_one_config(tmp_path: Path) -> None:
    """With what is published for what the whole leaves out."""
    folder = written(
        tmp_path,
        {
            "clip-vit/config.json": {"model_type": "clip", "vision_config": {"hidden_size": 8}},
            "xverse-llm/config.json": {"hidden_size": 16},
            "xverse-llm/generation_config.json": {"top_p": 0.5},
        },
    )
    whole = joined_config(folder, {"lora_r": 4})
    assert whole["vision_config"] == {"hidden_size": 8} and whole["text_config"] == {"hidden_size": 16}
    assert (whole["lora_r"], whole["lora_alpha"], whole["end_sym"]) == (4, 256, "<|endoftext|>")
    assert joined_config(folder, {})["lora_r"] == 128 and whole["prompt_template"] == "Human: {}\nAssistant: "
    assert whole[GENERATION] == {"top_p": 0.5}
    written(folder, {"generation_config.json": {"top_p": 0.9}, "clip-vit/config.json": {"hidden_size": 9}})
    whole = joined_config(folder, {})
    assert whole[GENERATION] == {"top_p": 0.9}, "the whole's own settings come first"
    assert whole["vision_config"] == {"hidden_size": 9}, "a tower's config may stand alone"


def test_a_config_is_written_back_into_its_parts(tmp_path: Path) -> None:
    whole = {"lora_r": 4, "vit_path": "eye", "vision_config": {"hidden_size": 8}, "text_config": {"hidden_size": 16}}
    parts = parted_files(whole, {"config.json": whole, "generation_config.json": {"top_p": 0.5}})
    assert parts == {
        "config.json": {"lora_r": 4, "vit_path": "eye"},
        "eye/config.json": {"model_type": "clip", "vision_config": {"hidden_size": 8}},
        "xverse-llm/config.json": {"hidden_size": 16},
        "xverse-llm/generation_config.json": {"top_p": 0.5},
    }
    again = joined_config(written(tmp_path, parts), parts["config.json"])
    assert {key: again[key] for key in whole} == whole


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    written(tmp_path, {"clip-vit/config.json": {"hidden_size": 8}})
    with pytest.raises(CheckpointError, match=r"xverse-llm/config.json is missing"):
        joined_config(tmp_path, {})
