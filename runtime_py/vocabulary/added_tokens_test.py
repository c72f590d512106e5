"""Added tokens from every place where checkpoints keep them; what two places say differently is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime_py import tokenizer
from runtime_py.errors import PackageError
from runtime_py.vocabulary.added_tokens import added_tokens, completed, roles

DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"
XVERSE = json.loads((DEMOS / "xverse-v" / "tokenizer.json").read_text(encoding="utf-8"))
SIZE = 1 + max(XVERSE["model"]["vocab"].values())
ROW = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def folder_of(place: Path, vocabulary: str = "xverse-v", **tables: Any) -> Path:
    """A folder with a demo's vocabulary and these tables, by their names without ``.json``."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (DEMOS / vocabulary / name).is_file():
            (place / name).write_bytes((DEMOS / vocabulary / name).read_bytes())
    for name, table in tables.items():
        (place / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    return place


TABLES: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens": {"<new>": SIZE}},
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {str(SIZE): {"content": "<new>", **ROW}}}},
    "a role": {"tokenizer_config": {"pad_token": "<new>"}},
    "a role as an object": {"tokenizer_config": {"pad_token": {"content": "<new>", "__type": "AddedToken"}}},
    "additional_special_tokens": {"tokenizer_config": {"additional_special_tokens": ["<new>"]}},
    "extra_special_tokens": {"tokenizer_config": {"extra_special_tokens": ["<new>"]}},
    "extra_special_tokens by name": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<new>"}}},
    "special_tokens_map.json": {"special_tokens_map": {"additional_special_tokens": ["<new>"]}},
}


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_a_token_of_any_table_is_one_id(tmp_path: Path, tables: dict[str, Any]) -> None:
    words = tokenizer.load(folder_of(tmp_path, **tables))
    assert words.token_id("<new>") == SIZE and "<new>" in words.added
    assert words.encode("red<new>ball") == [*words.encode("red"), SIZE, *words.encode("ball")]


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_a_token_beside_a_sentencepiece_model_is_one_id(tmp_path: Path, tables: dict[str, Any]) -> None:
    size = len(tokenizer.read_sentencepiece(DEMOS / "minicpm-v" / "tokenizer.model").pieces)
    text = json.dumps(tables).replace(str(SIZE), str(size))
    words = tokenizer.load(folder_of(tmp_path, "minicpm-v", **json.loads(text)))
    assert words.encode("red<new>") == [*words.encode("red"), size]


@pytest.mark.parametrize("vocabulary", ["xverse-v", "minicpm-v"])
@pytest.mark.parametrize(
    "tables",
    [{"added_tokens": {"": 5}}, {"tokenizer_config": {"added_tokens_decoder": {"5": {"content": "", "special": True}}}}],
)
def test_a_token_of_no_letter_is_none(tmp_path: Path, vocabulary: str, tables: dict[str, Any]) -> None:
    """Whole vocabularies would be cut at every letter."""
    words, plain = tokenizer.load(folder_of(tmp_path, vocabulary, **tables)), tokenizer.load(DEMOS / vocabulary)
    assert words.encode("Where is the ball?") == plain.encode("Where is the ball?")
    assert "" not in words.added


def test_a_row_of_no_letter_is_none(tmp_path: Path) -> None:
    rows = [*XVERSE["added_tokens"], {"id": SIZE, "content": "", "special": True, **ROW}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**XVERSE, "added_tokens": rows}), encoding="utf-8")
    words = tokenizer.load(tmp_path)
    assert words.added <= words.ids.keys() and "" not in words.added


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_transformers_gives_the_same_ids(tmp_path: Path, tables: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    place = folder_of(tmp_path, **tables)
    library, words = transformers.PreTrainedTokenizerFast.from_pretrained(place), tokenizer.load(place)
    if len(library) == SIZE:
        pytest.skip("this version of transformers does not read this table")
    for text in ("red<new>ball", " <new> <new>", "<pad><new>\n"):
        assert words.encode(text) == library(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("flags", [*({flag: True} for flag in ROW), {"special": True}, {}], ids=str)
@pytest.mark.parametrize("stated", [False, True], ids=["not in tokenizer.json", "in tokenizer.json"])
def test_a_described_token_is_matched_as_in_transformers(tmp_path: Path, flags: dict[str, bool], stated: bool) -> None:
    transformers = pytest.importorskip("transformers")
    place = folder_of(tmp_path, tokenizer_config={"added_tokens_decoder": {str(SIZE): {"content": "<new>", **flags}}})
    if stated:
        row = {"id": SIZE, "content": "<new>", **ROW, "special": False}
        (place / "tokenizer.json").write_text(json.dumps({**XVERSE, "added_tokens": [*XVERSE["added_tokens"], row]}))
    library, words = transformers.PreTrainedTokenizerFast.from_pretrained(place), tokenizer.load(place)
    for text in ("red <new> ball", "red<new>ball", " <new>  <new>\n", "<new>"):
        assert words.encode(text) == library(text, add_special_tokens=False).input_ids


def test_a_token_with_a_special_role_is_special_whatever_its_row_says(tmp_path: Path) -> None:
    rows = {"7": {"content": "<plain>", "special": False}, "9": {"content": "<end>", "special": False}}
    folder = folder_of(tmp_path, tokenizer_config={"added_tokens_decoder": rows}, special_tokens_map={"eos_token": "<end>"})
    assert [(token.text, token.id, token.special) for token in added_tokens(folder)] == [
        ("<plain>", 7, False),
        ("<end>", 9, True),
    ]


def test_tables_that_repeat_the_vocabulary_change_nothing(tmp_path: Path) -> None:
    place = folder_of(tmp_path, added_tokens={"<pad>": 1}, tokenizer_config={"pad_token": "<pad>"})
    assert completed(XVERSE, added_tokens(place), place / "tokenizer.json") == XVERSE
    assert roles(place) == {"pad_token": "<pad>"}


def test_an_ordinary_piece_that_is_named_special_becomes_one_token(tmp_path: Path) -> None:
    text, index = next((text, index) for text, index in XVERSE["model"]["vocab"].items() if len(text) > 2 and text.isalpha())
    words = tokenizer.load(folder_of(tmp_path, tokenizer_config={"eos_token": text}))
    assert words.encode(f"x{text}{text}y").count(index) == 2


@pytest.mark.parametrize(
    "tables",
    [
        {"added_tokens": {"<new>": SIZE + 1}},
        {"added_tokens": {"<new>": 5}},
        {"added_tokens": {"<pad>": 5}},
        {"added_tokens": {"<a>": SIZE}, "tokenizer_config": {"added_tokens_decoder": {str(SIZE): {"content": "<b>"}}}},
        {"added_tokens": {"<a>": SIZE}, "tokenizer_config": {"added_tokens_decoder": {str(SIZE + 1): {"content": "<a>"}}}},
    ],
    ids=["a hole", "an id taken", "another id", "two texts", "two ids"],
)
def test_what_two_places_say_differently_is_refused(tmp_path: Path, tables: dict[str, Any]) -> None:
    with pytest.raises(PackageError, match=r"gives '<(new|pad|a)>' the id"):
        tokenizer.load(folder_of(tmp_path, **tables))


@pytest.mark.parametrize(
    "tables",
    [
        {"tokenizer_config": []},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        {"tokenizer_config": {"added_tokens_decoder": {"3": "x"}}},
        {"tokenizer_config": {"eos_token": 5}},
        {"special_tokens_map": {"additional_special_tokens": [["deep", ["er"]]]}},
        {"added_tokens": {"<x>": True}},
    ],
)
def test_tables_of_another_form_are_named(tmp_path: Path, tables: dict[str, Any]) -> None:
    with pytest.raises(PackageError, match=rf"{next(iter(tables))}\.json lists added tokens in another form"):
        tokenizer.load(folder_of(tmp_path, **tables))


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    place = folder_of(tmp_path)
    for name, text in (("tokenizer_config.json", '{"pad_token": "<new>"}'), ("tokenizer.json", json.dumps(XVERSE))):
        (place / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert tokenizer.load(place).token_id("<new>") == SIZE


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_truncation_and_padding_are_switched_off(tmp_path: Path, direction: str) -> None:
    truncation = {"direction": direction, "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 10**9}, "direction": direction, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    place = folder_of(tmp_path)
    plain = tokenizer.load(place)
    cut = {**XVERSE, "truncation": truncation, "padding": {**padding, "pad_to_multiple_of": None}}
    (place / "tokenizer.json").write_text(json.dumps(cut), encoding="utf-8")
    for text in ("a", "what colour is the circle in the picture, and why?"):
        assert tokenizer.load(place).encode(text) == plain.encode(text)
