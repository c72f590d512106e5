"""Tokenizers are opened and compared before any work: with the embedding table, and with the others in their folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.package.tokenizer_check import check_tokenizer
from export.package.tokenizer_files import write_tokenizer
from export.package.tokenizer_json import convert
from export.pipeline import plan
from export.request import ExportRequest
from runtime_py import tokenizer
from runtime_py.errors import CheckpointError, UnsupportedModelError

DEMOS = Path(__file__).parents[1] / "demo" / "checkpoints"
NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MODELS = ("minicpm-v", "omnilmm-12b", "wemm")
JSONS = ("awaker2.5-vl", "cogvlm2", "xverse-v")


def copied(name: str, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    for file in NAMES:
        if (DEMOS / name / file).is_file():
            shutil.copyfile(DEMOS / name / file, place / file)
    return place


def rows(place: Path) -> int:
    return len(tokenizer.load(place).pieces)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("name", (*MODELS, *JSONS))
def test_ids_beyond_the_table_are_refused(name: str, tmp_path: Path) -> None:
    place = copied(name, tmp_path)
    count = rows(place)
    assert check_tokenizer(place, count) == ()
    with pytest.raises(CheckpointError, match=rf"token\(s\) of .* {count - 1}"):
        check_tokenizer(place, count - 1)
    (place / "added_tokens.json").write_text(json.dumps({**_listed(place), "<my_tag>": count}))
    with pytest.raises(CheckpointError, match=rf"'<my_tag>' {count}"):
        check_tokenizer(place, count)
    assert check_tokenizer(place, count + 1) == ()


def _listed(place: Path) -> dict[str, int]:
    path = place / "added_tokens.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.parametrize("name", ["omnilmm-12b", "cogvlm2"])
def test_a_plan_finds_it_before_any_work(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMOS / name, tmp_path / "checkpoint"))
    table = json.loads((folder / "added_tokens.json").read_text()) if (folder / "added_tokens.json").is_file() else {}
    (folder / "added_tokens.json").write_text(json.dumps({**table, "<my_tag>": rows(folder)}))
    request = ExportRequest(model=str(folder), target="cpu", precision="fp32", output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="<my_tag>"):
        plan(request, None)


@pytest.mark.parametrize("name", MODELS)
def test_two_forms_of_one_tokenizer_agree(name: str, tmp_path: Path) -> None:
    place, package = copied(name, tmp_path / "checkpoint"), tmp_path / "package"
    package.mkdir()
    write_tokenizer(place, package)
    shutil.copyfile(package / "tokenizer.json", place / "tokenizer.json")
    assert check_tokenizer(place, rows(place)) == ()


@pytest.mark.parametrize("name", MODELS)
def test_a_newer_tokenizer_json_is_used_and_said(name: str, tmp_path: Path) -> None:
    place = copied(name, tmp_path)
    count = rows(place)
    value = convert(place / "tokenizer.model")
    value["added_tokens"].append({**value["added_tokens"][-1], "id": count, "content": "<loc_1>"})
    (place / "tokenizer.json").write_text(json.dumps(value))
    (note,) = check_tokenizer(place, count + 1)
    assert f"'<loc_1>' {count}" in note
    assert tokenizer.load(place).encode("at <loc_1>")[-1] == count


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    place = copied("minicpm-v", tmp_path)
    value = convert(place / "tokenizer.model")
    vocabulary = value["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (place / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"number 2 token\(s\) otherwise") as caught:
        check_tokenizer(place, 10**4)
    assert "remove tokenizer.json or tokenizer.model" in caught.value.next_step


def test_another_cut_of_one_vocabulary_is_said(tmp_path: Path) -> None:
    place = copied("omnilmm-12b", tmp_path)
    value = convert(place / "tokenizer.model")
    value["normalizer"]["normalizers"] = [step for step in value["normalizer"]["normalizers"] if step["type"] != "Prepend"]
    (place / "tokenizer.json").write_text(json.dumps(value))
    (note,) = check_tokenizer(place, 10**4)
    assert "otherwise than tokenizer.model" in note and "became" in note


def test_vocabulary_and_merges_beside_tokenizer_json(tmp_path: Path) -> None:
    place = copied("awaker2.5-vl", tmp_path)
    model = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (place / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    assert check_tokenizer(place, 10**4) == ()
    (place / "merges.txt").write_text("\n".join(merges[::-1]), encoding="utf-8")
    (note,) = check_tokenizer(place, 10**4)
    assert "other merges" in note
    (place / "vocab.json").write_text(json.dumps({**model["vocab"], "a": 0}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'a'"):
        check_tokenizer(place, 10**4)


@pytest.mark.parametrize("name", ["vocab.json", "qwen.tiktoken"])
def test_a_vocabulary_that_needs_its_code_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"no tokenizer that can be read, only {name}") as caught:
        check_tokenizer(tmp_path, 10)
    assert "save_pretrained" in caught.value.next_step


def test_damaged_tables_and_models_that_cannot_be_converted(tmp_path: Path) -> None:
    place = copied("minicpm-v", tmp_path)
    (place / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
        check_tokenizer(place, 10**4)
    (place / "tokenizer_config.json").unlink()
    content = (place / "tokenizer.model").read_bytes()
    (place / "tokenizer.model").write_bytes(content + b"\x12\x02\x18\x01")  # trainer_spec.model_type = UNIGRAM
    with pytest.raises((UnsupportedModelError, CheckpointError)):
        check_tokenizer(place, 10**4)


@pytest.mark.parametrize("name", MODELS)
def test_settings_that_cut_text_otherwise_are_refused_where_nothing_applies_them(name: str, tmp_path: Path) -> None:
    place = copied(name, tmp_path)
    config = place / "tokenizer_config.json"
    before = config.read_bytes()
    row = {"content": "<s>", "lstrip": False, "rstrip": True, "single_word": False, "normalized": False, "special": True}
    for change, words in (
        ({"legacy": False}, "'legacy' false"),
        ({"added_tokens_decoder": {"1": row}}, "<s>' with rstrip"),
    ):
        edit(config, lambda value, change=change: value.update(change))  # type: ignore[misc]
        with pytest.raises(UnsupportedModelError, match=words):
            check_tokenizer(place, 1 << 20)
        config.write_bytes(before)
    edit(config, lambda value: value.update({"legacy": True}))
    assert check_tokenizer(place, 1 << 20) == ()
