"""Stop tokens and sampling, of every family and of the rules they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.recognised import recognise_checkpoint
from export.families.base import Family
from export.families.config.generation import GenerationDefaults, generation_of
from export.families.config.section import Section
from export.families.config.unapplied_generation import NEUTRAL, READ, SILENT, _tell, tell_unapplied
from export.families.config.vocabulary import ROLES, TOKENS, named_end
from export.families.registry import families
from export.source.hub import DEMO_FOLDER
from export.source.tensor_source import EmptySource
from runtime_py.errors import CheckpointError
from runtime_py.generation.generate import settings_of

ALL = pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
FILE = {"do_sample": True, "temperature": 0.3, "top_p": 0.4, "top_k": 5, "repetition_penalty": 1.5, "max_new_tokens": 77}
FROM_FILE = {"xverse-v", "qwen2-vl", "awaker2.5-vl"}
"""Those of the families here whose published code leaves the choice of tokens to generation_config.json, said once more."""
FROM_CODE = {"minicpm-v", "minicpm-llama3-v", "omnilmm-12b", "wemm", "cogvlm2"}
"""Those whose code names it itself."""


def hears_file(family: Family) -> bool:
    """Whether a family's published.toml says so."""
    return any(answers.from_file for answers in family.published_code().answers.values())


def generation(family: Family, config: dict[str, Any] | None = None, file: dict[str, Any] | None = None) -> dict[str, Any]:
    """The tiny checkpoint's generation settings with keys of its decoder's config and another generation_config.json."""
    tiny = family.published_config("", "tiny")
    stated = {**tiny, "generation_config": file or {}}
    if "text_config" in tiny:
        stated["text_config"] = {**tiny["text_config"], **(config or {})}
    else:
        stated |= config or {}
    return family.spec(stated, EmptySource()).generation


@ALL
def test_ids_and_lists_of_ids_stop_alike_in_either_file(family: Family) -> None:
    one = generation(family, {"eos_token_id": 7})["stop_ids"]
    assert set(generation(family, {"eos_token_id": [7]})["stop_ids"]) == set(one)
    assert 7 in one
    both = generation(family, {"eos_token_id": [7, 8]}, {"eos_token_id": [9, 7]})["stop_ids"]
    assert set(both) == {*one, 8, 9}
    assert len(both) == len(set(both))
    assert all(type(token) is int for token in both)


@ALL
def test_null_ends_fall_back_to_the_familys_own(family: Family) -> None:
    nulls = {"eos_token_id": None}
    stop_ids = generation(family, nulls, nulls)["stop_ids"]
    assert stop_ids and all(type(token) is int for token in stop_ids)


@ALL
@pytest.mark.parametrize("end", ["<end>", {"content": "<end>", "lstrip": False}, None])
def test_the_tokenizers_own_end_stops_too(family: Family, end: Any, tmp_path: Path) -> None:
    """A fine-tune may name another token in tokenizer_config.json alone."""
    tiny = family.published_config("", "tiny")
    before = generation(family)["stop_ids"]
    free = next(index for index in range(50, 100) if index not in before)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<end>"}))
    stated = {**tiny, TOKENS: {**tiny.get(TOKENS, {}), "<end>": free}, ROLES: named_end(tmp_path)}
    assert set(family.spec(stated, EmptySource()).generation["stop_ids"]) == {*before, free}


@pytest.mark.parametrize("name", sorted(path.name for path in DEMO_FOLDER.iterdir() if path.is_dir()))
def test_demos_name_no_other_end(name: str) -> None:
    read = recognise_checkpoint(DEMO_FOLDER / name)
    assert named_end(DEMO_FOLDER / name)
    ends = read.spec(read.open_source()).generation["stop_ids"]
    without = read.family.spec({**read.config, ROLES: {}}, read.open_source()).generation["stop_ids"]
    assert ends == without


@ALL
@pytest.mark.parametrize("value", [-1, 10**9, "2", [None], [[2]], True, {"id": 2}])
def test_what_is_no_id_is_refused_by_key_and_file(family: Family, value: Any) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id"):
        generation(family, {"eos_token_id": value})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        generation(family, None, {"eos_token_id": value})


def test_families_hear_the_file_that_should() -> None:
    assert {name for name in FROM_FILE | FROM_CODE if hears_file(families()[name])} == FROM_FILE


@ALL
def test_do_sample_false_is_greedy(family: Family) -> None:
    assert generation(family, None, {**FILE, "do_sample": False})["temperature"] == 0.0


@ALL
def test_the_file_is_heard_where_the_published_code_hears_it(family: Family) -> None:
    heard = generation(family, None, FILE)
    if hears_file(family):
        assert {name: heard[name] for name in FILE if name != "do_sample"} == {
            k: v for k, v in FILE.items() if k != "do_sample"
        }
    else:
        assert heard == generation(family)
    assert generation(family, None, dict.fromkeys(FILE)) == generation(family)
    settings_of(heard)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("do_sample", "yes"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=key):
        generation_of(Section({**FILE, key: value}), GenerationDefaults(from_file=True), [2])


def test_silence_about_sampling_means_greedy_as_in_transformers() -> None:
    file = {key: value for key, value in FILE.items() if key != "do_sample"}
    settings = generation_of(Section(file), GenerationDefaults(from_file=True), [2])
    assert (settings["temperature"], settings["top_k"], settings["repetition_penalty"]) == (0.0, 5, 1.5)
    config = pytest.importorskip("transformers").GenerationConfig(**file)
    assert not config.do_sample


@pytest.mark.parametrize("name", sorted(FROM_FILE))
@pytest.mark.parametrize("said", [{}, {"top_p": 0.8}, {"temperature": 0.7}, {"top_k": 0, "top_p": None}], ids=str)
def test_what_a_file_that_draws_leaves_out_is_transformers_default(name: str, said: dict[str, Any]) -> None:
    library = pytest.importorskip("transformers").GenerationConfig
    stated = {key: value for key, value in said.items() if value is not None}
    theirs = {**library._get_default_generation_params(), **stated}
    ours = generation(families()[name], None, {"do_sample": True, **said})
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    assert {key: ours[key] for key in names} == {key: theirs[key] for key in names}


@ALL
def test_a_temperature_of_the_callers_draws(family: Family) -> None:
    """A greedy default must not leave one token to draw from, unless the published code itself does."""
    assert generation(family)["top_k"] != 1 or any(way.top_k == 1 for way in family.published_code().answers.values())


@ALL
@pytest.mark.parametrize("beside", [True, False], ids=["generation_config.json", "config.json"])
def test_what_is_not_built_is_said_by_name_once(family: Family, beside: bool, caplog: pytest.LogCaptureFixture) -> None:
    _tell.cache_clear()
    unusual = {"num_beams": 3, "no_repeat_ngram_size": 2, "stop_strings": ["##"]}
    neutral = {"num_return_sequences": 1, "typical_p": 1.0, "suppress_tokens": None, "max_length": 4096, "use_cache": True}
    for _ in range(2):
        generation(family, None, unusual | neutral) if beside else generation(family, unusual | neutral)
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert all(name in said for name in unusual) and not any(name in said for name in neutral)
    assert said.partition(":")[0].rpartition("/")[2] == ("generation_config.json" if beside else "config.json")


def test_a_key_that_nobody_knows_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    _tell.cache_clear()
    tell_unapplied(
        Section({"chat_format": "chatml", "_from_model_config": True, "top_k": 5}, "generation_config.json"),
        Section({}),
        True,
    )
    assert "chat_format 'chatml'" in caplog.text and "top_k" not in caplog.text


def test_every_setting_of_transformers_is_known_and_its_default_is_neutral(caplog: pytest.LogCaptureFixture) -> None:
    library = pytest.importorskip("transformers").GenerationConfig
    _tell.cache_clear()
    values = {**vars(library()), **library._get_default_generation_params()}
    assert set(values) - READ - SILENT - set(NEUTRAL) - {key for key in values if key.startswith("_")} == set()
    tell_unapplied(Section(values, "generation_config.json"), Section({}), True)
    assert not caplog.records
