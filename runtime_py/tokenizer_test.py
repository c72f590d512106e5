from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_py import tokenizer
from runtime_py.conftest import train_sentencepiece
from runtime_py.errors import PackageError
from runtime_py.files.sentencepiece_file import MAX_TOKENS
from runtime_py.tokenizer import Tokenizer

texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("圆形红 <>shape\n\t▁😀")), max_size=40)
many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(texts)
def test_decoding_gives_the_text_back(words: Tokenizer, text: str) -> None:
    hidden = text.replace("\u2581", " ")
    for mark in ("<unk>", "<s>", "</s>"):
        hidden = hidden.replace(mark, "")
    assert words.decode(words.encode(text)) == hidden


@many
@given(st.lists(st.integers(0, 400), max_size=40))
def test_streaming_never_cuts_a_character(words: Tokenizer, ids: list[int]) -> None:
    stream = words.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == words.decode(ids)
    assert words.decode(ids) == b"".join(words.pieces[token] for token in ids).decode("utf-8", "replace")


def test_ids_of_no_token_show_nothing(words: Tokenizer) -> None:
    """A model's table may have more rows than its tokenizer has tokens."""
    assert words.decode([len(words.pieces), *words.encode("red"), -1]) == "red"


def test_a_character_of_several_tokens_appears_with_its_last(words: Tokenizer) -> None:
    ids = words.encode("龘😀")
    assert len(ids) == 7
    stream = words.stream()
    assert [stream.push(token) for token in ids] == ["", "", "龘", "", "", "", "😀"]
    half = words.stream()
    assert [half.push(token) for token in ids[:2]] == ["", ""]
    assert half.finish() == "\ufffd"


def test_user_mark_is_ordinary_text_and_special_tokens_are_one_id(words: Tokenizer) -> None:
    assert words.encode("<image><unk></image>\n</s>") == [101, 0, 102, 5, 2]
    assert len(words.encode("<用户>")) > 1
    assert words.token_id("</slice>") == 112 and words.token_id("no such token") is None
    assert words.decode([1, 101, 0, 2]) == "<image>"


def test_no_space_is_put_in_front_unless_the_model_does(tmp_path: Path, words: Tokenizer) -> None:
    assert words.decode(words.encode(" red")) == " red"
    assert words.encode("red") != words.encode(" red")
    prefixed = tokenizer.read_sentencepiece(train_sentencepiece(tmp_path / "tokenizer.model", dummy_prefix=True))
    assert prefixed.leading_space
    assert prefixed.decode(prefixed.encode("red ball")) == "red ball"
    assert prefixed.decode(prefixed.encode(" red")) == " red"


def test_added_tokens_beside_the_model_are_honoured(tmp_path: Path, sentencepiece_file: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    size = len(tokenizer.read_sentencepiece(sentencepiece_file).pieces)
    rows = {"111": {"content": "<cut>"}, str(size): {"content": "<new>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": rows}))
    words = tokenizer.load(tmp_path)
    assert words.encode("<cut>a<new>")[::2] == [111, size]
    assert words.decode([111, size]) == "<cut><new>"


def test_byte_level_vocabularies_decode() -> None:
    folder = Path(__file__).parents[1] / "parity_tests" / "goldens" / "mlc-llama" / "checkpoint"
    if "ByteLevel" not in (folder / "tokenizer.json").read_text(encoding="utf-8"):
        pytest.skip("that golden's tokenizer is not byte-level")
    words = tokenizer.load(str(folder))  # as runtime_py.load takes a package's
    assert words.decode(words.encode("Hello, 世界 😀")) == "Hello, 世界 😀"


def test_trained_byte_level_vocabulary_round_trips(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["the red shape", "红色的圆形"], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    words = tokenizer.load(tmp_path)
    text = "the 红 shape\n😀é"
    assert words.decode(words.encode(text)) == text == library.decode(library.encode(text).ids)
    end = words.token_id("<|end|>")
    assert words.encode("a<|end|>")[-1] == end and words.decode([end or 0]) == ""


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x0a\xff\xff no tokenizer")
    with pytest.raises(PackageError, match=name):
        tokenizer.load(tmp_path)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no tokenizer") as told:
        tokenizer.load(tmp_path)
    assert told.value.next_step.endswith("export again"), "a file put into a package is one that its manifest lacks"


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_affixes_are_refused_before_the_library_sees_them(tmp_path: Path, key: str) -> None:
    """tokenizers 0.23 ends the process on this file: the prefix is cut off bytes of a longer character."""
    model = {"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": [["a", "é"]], key: "a"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": model, "decoder": {"type": "ByteLevel"}})
    )
    with pytest.raises(PackageError, match=key):
        tokenizer.load(tmp_path)


def byte_level(**settings: object) -> bytes:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps({"version": "1.0", "model": model, "decoder": decoder, **settings}).encode()


def test_the_smallest_byte_level_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(byte_level())
    assert tokenizer.load(tmp_path).encode("aa") == [0, 0]


def test_ids_beyond_any_vocabulary_are_refused_before_a_table_is_made(tmp_path: Path) -> None:
    """An id may have 32 bits, and a table of four billion rows would take the machine's memory."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": MAX_TOKENS}, "merges": []}
    (tmp_path / "tokenizer.json").write_bytes(byte_level(model=model))
    with pytest.raises(PackageError, match="number tokens up to 1,048,576"):
        tokenizer.load(tmp_path)


def replaced(pattern: str, by: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": by}


@pytest.mark.parametrize(
    "normalizer",
    [
        replaced("", "a"),
        replaced("e", "a" * 1000),
        {"type": "Prepend", "prepend": "a" * 1000},
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replaced("a", "aaa")] * 4}]},
    ],
)
def test_a_normaliser_that_makes_much_of_little_is_refused(tmp_path: Path, normalizer: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_bytes(byte_level(normalizer=normalizer))
    with pytest.raises(PackageError, match="normaliser"):
        tokenizer.load(tmp_path)


def test_a_pattern_without_end_is_an_error_of_the_file(tmp_path: Path) -> None:
    """The tokenizers library gives up on it by a panic, while a text is encoded."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_bytes(byte_level(pre_tokenizer=split))
    words = tokenizer.load(tmp_path)
    with pytest.raises(PackageError, match=r"tokenizer\.json makes the tokenizers library fail"):
        words.encode("a" * 40 + "b")


def test_dropout_is_refused(tmp_path: Path) -> None:
    """It would give a question other ids every time."""
    model = {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]]}
    (tmp_path / "tokenizer.json").write_bytes(byte_level(model={**model, "dropout": 0.1}))
    with pytest.raises(PackageError, match=r"at random: its model has dropout 0\.1"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(byte_level(model={**model, "dropout": None}))
    assert tokenizer.load(tmp_path).encode("aa") == [1]


@pytest.mark.parametrize("settings", [{"model": None}, {"model": []}, {"added_tokens": [5]}, {"added_tokens": 5}, {}])
def test_another_layout_is_said_in_words(tmp_path: Path, settings: dict[str, object]) -> None:
    (tmp_path / "tokenizer.json").write_bytes(byte_level(**settings) if settings else b"{}")
    with pytest.raises(PackageError, match=r"tokenizer\.json has another layout"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":[' + b"[]," * 3_000_000 + b"0]}", b"[]", b'{"a":1,"a":2}'])
def test_json_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        tokenizer.load(tmp_path)
