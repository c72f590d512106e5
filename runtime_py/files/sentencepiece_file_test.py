"""SentencePiece files: those that the trainer writes pass, those that would be read out of bounds do not."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import pytest

from runtime_py import tokenizer
from runtime_py.errors import PackageError
from runtime_py.files.sentencepiece_file import HAS_WIDE_OFFSET, LEAF, OFFSET_SHIFT, check_character_map, check_model

DEMOS = sorted((Path(__file__).parents[2] / "export" / "demo" / "checkpoints").rglob("tokenizer.model"))


@pytest.fixture(scope="module")
def normalised() -> bytes:
    """A model with the compiled map of NFKC, the default of the trainer."""
    import sentencepiece

    out = io.BytesIO()
    sentences = iter(["ﬁne ½ Ａ text to learn from, and some more of it"] * 50)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=out, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return out.getvalue()


def map_of(model: bytes) -> bytes:
    from runtime_py.files.protobuf import fields

    normaliser = next(value for number, value in fields(memoryview(model)) if number == 3)
    assert not isinstance(normaliser, int)
    return bytes(dict(fields(normaliser))[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.parent.name)
def test_published_files_pass(path: Path) -> None:
    assert check_model(path) == path.read_bytes()


def test_a_compiled_map_of_the_trainer_passes(tmp_path: Path, normalised: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(normalised)
    assert len(map_of(normalised)) > 100_000
    words = tokenizer.load(tmp_path)
    assert words.encode("ﬁne ½") == words.encode("fine 1⁄2")


def test_changed_maps_are_refused_or_stay_inside(normalised: bytes) -> None:
    """Every accepted map is walked as the library walks it, from every byte: no step leaves it."""
    good, accepted = map_of(normalised), 0
    for number in range(300):
        draw = Random(number)
        made = bytearray(good)
        for _ in range(draw.randint(1, 20)):
            made[draw.randrange(4, len(made) - 4)] = draw.randrange(256)
        try:
            check_character_map(bytes(made))
        except ValueError:
            continue
        accepted += 1
        walk(bytes(made), draw)
    assert accepted > 10


def walk(content: bytes, draw: Random) -> None:
    """s-yata/darts-clone, include/darts.h, ``commonPrefixSearch``, with the bounds that it does not check."""
    size = int.from_bytes(content[:4], "little")
    units = [int.from_bytes(content[4 + at : 8 + at], "little") for at in range(0, size, 4)]
    texts = content[4 + size :]

    def offset(unit: int) -> int:
        return (unit >> 10) << ((unit & (1 << 9)) >> 6)

    for _ in range(50):
        node = offset(units[0])
        for byte in (draw.randrange(256) for _ in range(12)):
            node ^= byte
            unit = units[node]
            if unit & ((1 << 31) | 0xFF) != byte:
                break
            node ^= offset(unit)
            if unit & (1 << 8):
                value = units[node] & ((1 << 31) - 1)
                assert not units[node] & (1 << 31) or texts.index(b"\0", value) >= value


def trie_of(unit: int, texts: bytes = b"\0", units: int = 256) -> bytes:
    """A trie of zeros with one unit of its own, and the texts."""
    trie = bytes(4) + unit.to_bytes(4, "little") + bytes(4 * units - 8)
    return (4 * units).to_bytes(4, "little") + trie + texts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x01", "trie is cut off"),
        (trie_of(0)[:100], "trie is cut off"),
        (trie_of(0, texts=b""), "trie is cut off"),
        (trie_of(0, units=255), "trie is cut off"),
        (b"\xff\xff\xff\xff" + bytes(2000), "trie is cut off"),
        (trie_of(0, texts=b"x"), "last text does not end"),
        (trie_of(LEAF | 1), "behind its texts"),
        (trie_of(256 << OFFSET_SHIFT), "behind its trie"),
        (trie_of(1 << OFFSET_SHIFT | HAS_WIDE_OFFSET), "behind its trie"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_maps_that_are_none(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_character_map(content)


@pytest.mark.parametrize(
    "content", [b"", trie_of(0), trie_of(LEAF), trie_of(LEAF | 1, b"x\0"), trie_of(255 << OFFSET_SHIFT)]
)
def test_maps_that_stay_inside_are_taken(content: bytes) -> None:
    check_character_map(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no pieces"),
        (b"\x80" * 1_000_000, "does not end"),
        (b"\x0a\x00" * ((1 << 20) + 1), "more than 1,048,576 pieces"),
        (b"\x0a\x81\x20" + bytes(4097), "more than 4096 bytes"),
        (b"\x08\x01", "pieces"),
        (b"\x1a\x02\x10\x01", "the integer 1 where a message was expected"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_models_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(PackageError, match=words):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("number", [-1, 1 << 20, 700_000_000, 10**30])
@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_ids_beyond_any_vocabulary(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "tokenizer.model").write_bytes(DEMOS[0].read_bytes())
    added = (
        f'{{"<x>": {number}}}'
        if name == "added_tokens.json"
        else f'{{"added_tokens_decoder": {{"{number}": {{"content": "<x>"}}}}}}'
    )
    (tmp_path / name).write_text(added)
    with pytest.raises(PackageError, match=rf"{name} gives a token the id {number}"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", '{"<x>": "three"}', '{"<x>": null}', '{"<x>": Infinity}', '{"<x>": 1, "<x>": 2}', "{"]
)
def test_added_tokens_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(DEMOS[0].read_bytes())
    (tmp_path / "added_tokens.json").write_text(text)
    with pytest.raises(PackageError, match=r"added_tokens\.json"):
        tokenizer.load(tmp_path)
