from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.package import tokenizer_json
from export.package.tokenizer_files import check_equal, ensure_tokenizer_json, proven_equal
from export.package.tokenizer_json import parse_model
from export.package.tokenizer_probes import PROBES
from runtime_py import tokenizer
from runtime_py.conftest import train_sentencepiece
from runtime_py.errors import CheckpointError, UnsupportedModelError
from runtime_py.tokenizer import Tokenizer, read_json, read_sentencepiece

Pair = tuple[Tokenizer, Tokenizer]
DEMOS = Path(__file__).parents[1] / "demo" / "checkpoints"


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module", params=[False, True], ids=["symbols", "dummy-prefix"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = train_sentencepiece(folder / "tokenizer.model", dummy_prefix=request.param, symbols=not request.param)
    return read_sentencepiece(model), read_json(ensure_tokenizer_json(folder, folder / "tokenizer.json"))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            st.sampled_from(
                ["shape", " red", "圆形", "<image>", "</s>", "<unk>", "\n", "  ", "▁", "😀", "<用户>", "<AI>", "3"]
            ),
        ),
        max_size=12,
    ).map("".join)
)
def test_both_forms_give_the_same_ids_and_text(pair: Pair, text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_probes_agree_and_library_decoding_agrees(tmp_path: Path, sentencepiece_file: Path) -> None:
    import tokenizers

    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    path = ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json")
    ours, library = read_sentencepiece(sentencepiece_file), tokenizers.Tokenizer.from_file(str(path))
    for text in PROBES:
        ids = ours.encode(text)
        assert library.encode(text).ids == ids
        assert library.decode(ids) == ours.decode(ids)
    assert not list(tmp_path.glob("*.partial"))


def test_pieces_whose_characters_are_no_pieces_are_kept(tmp_path: Path, sentencepiece_file: Path) -> None:
    """Real vocabularies hold emoji sequences that only SentencePiece can merge; here one piece is made such."""
    flag = "\U0001f1e9\U0001f1ea"
    data = bytearray(sentencepiece_file.read_bytes())
    piece = flag.encode()
    body = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + b"\x00\x00\x7a\xc3"
    (tmp_path / "tokenizer.model").write_bytes(bytes(data) + b"\x0a" + bytes([len(body)]) + body)
    ours = read_sentencepiece(tmp_path / "tokenizer.model")
    last = len(ours.pieces) - 1
    assert ours.encode(flag) == [last]
    theirs = read_json(ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json"))
    assert theirs.encode(f"a{flag}b") == ours.encode(f"a{flag}b")


def test_a_published_file_is_copied_byte_for_byte(tmp_path: Path) -> None:
    made = (DEMOS / "xverse-v" / "tokenizer.json").read_bytes()
    assert ensure_tokenizer_json(DEMOS / "xverse-v", tmp_path / "tokenizer.json").read_bytes() == made


def test_other_ids_are_found_and_nothing_is_left(
    tmp_path: Path, sentencepiece_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    merges = tokenizer_json._merges
    monkeypatch.setattr(tokenizer_json, "_merges", lambda pieces: merges(pieces)[::-1])
    with pytest.raises(CheckpointError, match="gives other ids"):
        ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_an_edited_file_does_not_pass_the_check(tmp_path: Path, sentencepiece_file: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    path = ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json")
    value = json.loads(path.read_text(encoding="utf-8"))
    value["normalizer"] = None
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(CheckpointError, match="other ids"):
        check_equal(read_sentencepiece(tmp_path / "tokenizer.model"), path)


def test_what_this_process_proved_it_knows_until_a_file_changes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in DEMOS.joinpath("minicpm-v").glob("*token*"):
        shutil.copyfile(path, checkpoint / path.name)
    written = tmp_path / "tokenizer.json"
    assert not proven_equal(checkpoint, written)
    ensure_tokenizer_json(checkpoint, written)
    assert proven_equal(checkpoint, written)
    copy = Path(shutil.copyfile(written, tmp_path / "copy.json"))
    assert proven_equal(checkpoint, copy)
    for path in (copy, checkpoint / "tokenizer_config.json"):
        with path.open("a") as handle:
            handle.write(" ")
        assert not proven_equal(checkpoint, copy)
        copy.write_bytes(written.read_bytes())


def test_unigram_models_are_refused(tmp_path: Path) -> None:
    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["red green blue shape"] * 9),
        model_writer=writer,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(writer.getvalue())
    with pytest.raises(UnsupportedModelError, match="type 1"):
        ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json")


def test_damaged_and_missing_models_are_named(tmp_path: Path, sentencepiece_file: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        ensure_tokenizer_json(tmp_path, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="no SentencePiece model"):
        parse_model(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("family", ["cogvlm2", "awaker2.5-vl", "xverse-v"])
def test_spaces_before_punctuation_stay_whatever_the_checkpoint_says(family: str, tmp_path: Path) -> None:
    """transformers left off cutting them from texts of BPE vocabularies with 5.7 (huggingface/transformers, pull 44915)."""
    transformers = pytest.importorskip("transformers", minversion="5.7")
    for path in DEMOS.joinpath(family).glob("*token*"):
        shutil.copyfile(path, tmp_path / path.name)
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    stated["clean_up_tokenization_spaces"] = True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated), encoding="utf-8")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), tokenizer.load(tmp_path)
    assert theirs.clean_up_tokenization_spaces
    text = "x != y , a . b ? we 've , it 's , I 'm , you 're not , do n't ' quoted ' here !"
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs.clean_up_tokenization(text) != text
