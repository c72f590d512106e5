"""The demo's SentencePiece file behaves as the published one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from export.demo.questions import corpus
from export.demo.recipes.minicpm_v import VOCABULARY, side_files
from export.demo.vocabulary import CONTROL, UNKNOWN, Layout, learn_merges, pieces
from runtime_py import tokenizer as tokenizers

MODEL = SentencePieceProcessor(model_proto=side_files()["tokenizer.model"])


def test_special_ids_are_the_published_ones() -> None:
    assert MODEL.get_piece_size() == VOCABULARY
    assert [MODEL.id_to_piece(i) for i in (0, 1, 2, 5)] == ["<unk>", "<s>", "</s>", "\n"]
    named = {101: "<image>", 102: "</image>", 103: "<ref>", 110: "</point>", 111: "<slice>", 112: "</slice>"}
    assert {i: MODEL.id_to_piece(i) for i in named} == named
    assert (MODEL.unk_id(), MODEL.bos_id(), MODEL.eos_id()) == (0, 1, 2)


def test_every_text_of_the_dialogues_comes_back_in_few_words() -> None:
    lengths = []
    for text in corpus():
        ids = MODEL.encode(text)
        assert MODEL.decode(ids) == text
        assert not any(MODEL.is_byte(i) or MODEL.is_unknown(i) for i in ids)
        lengths.append(len(ids))
    assert sum(lengths) / len(lengths) < 10


def test_roles_are_ordinary_text_and_nothing_merges_across_them() -> None:
    assert [MODEL.id_to_piece(i) for i in MODEL.encode("<用户>")] == ["<", "用户", ">"]
    assert [MODEL.id_to_piece(i) for i in MODEL.encode("<AI>")] == ["<", "AI", ">"]
    parts = ["<用户>", "\n", "What color is the star?", "<AI>", "red", "<用户>", "它在哪里？", "<AI>"]
    assert MODEL.encode("".join(parts)) == [i for part in parts for i in MODEL.encode(part)]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0")))
def test_any_text_comes_back(text: str) -> None:
    assert MODEL.decode(MODEL.encode(text)) == text


def test_the_runtime_reads_it_the_same_way(tmp_path: Path) -> None:
    for name, content in side_files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = tokenizers.load(tmp_path)
    for text in [*corpus()[:200], "héllo 网 🙂"]:
        assert tokenizer.encode(text) == MODEL.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.token_id("<image>") == 101


def test_merges_follow_frequency_and_names_come_first() -> None:
    assert learn_merges(["low low lower"], 3) == ["lo", "low", "\u2581low"]
    assert "用户" in learn_merges(["红色的圆形"] * 50, 1, names=["用户"])


def test_a_vocabulary_too_small_for_its_characters_is_refused() -> None:
    layout = Layout({0: ("<unk>", UNKNOWN), 1: ("<s>", CONTROL)}, (), 300)
    with pytest.raises(ValueError, match="300 ids cannot hold"):
        pieces(["abc"], layout)
