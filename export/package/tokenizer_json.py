"""Give a package a ``tokenizer.json``: the checkpoint's own, or one made from its SentencePiece model and checked.

A SentencePiece BPE model merges the adjacent pair whose joined text is the best-scored piece. ``tokenizers`` merges by
ranked pairs, both halves of which must be pieces; so each piece contributes every way to cut it in two, ranked by the
piece's score, and pieces that only SentencePiece can reach (an emoji sequence whose single characters are no pieces)
become added tokens. Both then give the same ids; a probe text and every single piece are compared before writing.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError, UnsupportedModelError
from runtime_py.files.protobuf import fields, message_of
from runtime_py.files.sentencepiece_file import CHARACTER_MAP, NORMALISER, PIECE, TRAINER, check_model
from runtime_py.tokenizer import added_tokens, read_json, read_sentencepiece

SPACE = "\u2581"
ZERO = bytes(4)

PROBES = (
    "What colour is the ball, and where does it lie?",
    "图片里有几个红色的圆形？请用一句话回答。",
    "  two  spaces,\ttabs\n\nand lines \n end ",
    "3.14159 1,024 ２０２４年 0x7f",
    "naïve café — “quotes” … €5 ½ ﬁ",
    "😀 🇩🇪 👩🏼‍🚀 ❤️ 汉字😀混排",
    "Привет мир, こんにちは, 안녕, مرحبا, हिन्दी",
    "<image></image><box>1 2 3 4</box><ref>x</ref><s></s><unk>",
    "<用户>hello<AI>",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; } // done\r\n",
    "\u2581 literal \u0000 zero \u200b width \U0001f9ff",
    "",
)


class PieceType(IntEnum):
    """google/sentencepiece: src/sentencepiece_model.proto, ModelProto.SentencePiece.Type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """The parts of a SentencePiece file that a converter needs.

    Attributes:
        pieces: (text, score, type) by id.
        model_type: 1 unigram, 2 BPE, 3 word, 4 character.
        character_map: the compiled normaliser; empty for identity.
    """

    pieces: tuple[tuple[str, float, PieceType], ...]
    model_type: int
    byte_fallback: bool
    character_map: bytes
    dummy_prefix: bool
    collapse_spaces: bool


def ensure_tokenizer_json(checkpoint: Path, out: Path) -> Path:
    """Write the file ``out`` (``.../tokenizer.json``) from what the checkpoint has, and return it.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or the conversion gives other ids.
        UnsupportedModelError: the SentencePiece model is no plain BPE model.
    """
    published, model = checkpoint / "tokenizer.json", checkpoint / "tokenizer.model"
    partial = out.with_name(out.name + ".partial")
    try:
        if published.is_file():
            if out.resolve() == published.resolve():
                return out
            shutil.copyfile(published, partial)
        elif model.is_file():
            partial.write_text(json.dumps(convert(model), ensure_ascii=False), encoding="utf-8")
            check_equal(model, partial)
        else:
            raise CheckpointError(
                f"{checkpoint} has no tokenizer",
                "tokenizer.json or tokenizer.model",
                "download the checkpoint's tokenizer",
            )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def convert(source: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` object of a SentencePiece BPE model, with the added tokens of the files beside it."""
    model = parse_model(source)
    if model.model_type != 2 or not model.byte_fallback or model.character_map or model.collapse_spaces:
        raise UnsupportedModelError(
            f"{source} is a SentencePiece model of type {model.model_type} with byte fallback {model.byte_fallback}, "
            f"a character map of {len(model.character_map)} bytes, space collapsing {model.collapse_spaces}",
            "a BPE model with byte fallback, identity normaliser and spaces kept",
            "put the tokenizer.json published with the model into the checkpoint folder",
        )
    renamed = {index: text for text, index in added_tokens(source.parent).items()}
    texts = [renamed.get(index, text) for index, (text, _, _) in enumerate(model.pieces)]
    first_new = len(texts)
    for index in sorted(index for index in renamed if index >= first_new):
        if index != len(texts):
            raise CheckpointError(
                f"added token '{renamed[index]}' has id {index}", f"id {len(texts)}", "mend added_tokens.json"
            )
        texts.append(renamed[index])
    whole = {PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED}
    added = {index for index, (_, _, kind) in enumerate(model.pieces) if kind in whole} | set(renamed)
    added |= set(_out_of_reach(source, model) - added)
    hidden = {index for index, (_, _, kind) in enumerate(model.pieces) if kind in {PieceType.UNKNOWN, PieceType.CONTROL}}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if model.dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.dummy_prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_row(index, texts[index], index in hidden) for index in sorted(added)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((text for text, _, kind in model.pieces if kind is PieceType.UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": _merges(model.pieces),
        },
    }


def _added_row(index: int, text: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": text, **flags, "special": special}


def _merges(pieces: Sequence[tuple[str, float, PieceType]]) -> list[list[str]]:
    """Every way to cut a piece into two pieces, best-scored piece first."""
    scores = {text: score for text, score, kind in pieces if kind is PieceType.NORMAL}
    ranks = {text: index for index, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score in scores.items():
        cuts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in scores and text[at:] in scores]
        merges += [(-score, ranks[left], ranks[right], left, right) for left, right in cuts]
    return [[left, right] for _, _, _, left, right in sorted(merges)]


def _out_of_reach(source: Path, model: SentencePieceModel) -> set[int]:
    """Pieces SentencePiece forms from characters that are no pieces themselves, which ranked merges cannot."""
    singles = {text for text, _, kind in model.pieces if kind is PieceType.NORMAL and len(text) == 1}
    candidates = {
        text: index
        for index, (text, _, kind) in enumerate(model.pieces)
        if kind is PieceType.NORMAL and len(text) > 1 and any(letter not in singles for letter in text)
    }
    tokenizer = read_sentencepiece(source)
    return {index for text, index in candidates.items() if tokenizer.encode(text.replace(SPACE, " ")) == [index]}


def check_equal(source: Path, converted: Path) -> None:
    """Raise CheckpointError unless both forms give the probe texts and every single piece the same ids."""
    ours, theirs = read_sentencepiece(source), read_json(converted)
    renamed = {index for index in added_tokens(source.parent).values()}
    pieces = [text for index, (text, _, _) in enumerate(parse_model(source).pieces) if index not in renamed]
    wrong = [text for text in (*PROBES, *pieces) if ours.encode(text) != theirs.encode(text)]
    if wrong:
        shown = "; ".join(f"{text!r}: {ours.encode(text)} became {theirs.encode(text)}" for text in wrong[:3])
        raise CheckpointError(
            f"the tokenizer.json made from {source} gives other ids for {len(wrong)} of {len(PROBES) + len(pieces)} texts: "
            + shown,
            "equal ids",
            "put the tokenizer.json published with the model into the checkpoint folder",
        )


def parse_model(path: Path) -> SentencePieceModel:
    """Read the pieces and settings of a SentencePiece file (protocol buffer wire format, no library needed)."""
    pieces = []
    trainer: Mapping[int, Any] = {}
    normaliser: Mapping[int, Any] = {}
    content = check_model(path, CheckpointError)
    try:
        for number, value in fields(memoryview(content)):
            if number == PIECE:
                row: Mapping[int, Any] = dict(fields(message_of(value)))
                kind = PieceType(row.get(3, PieceType.NORMAL))
                pieces.append((bytes(row[1]).decode("utf-8"), struct.unpack("<f", row.get(2, ZERO))[0], kind))
            elif number == TRAINER:
                trainer = dict(fields(message_of(value)))
            elif number == NORMALISER:
                normaliser = dict(fields(message_of(value)))
        character_map = bytes(normaliser.get(CHARACTER_MAP, b""))
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{path} is no SentencePiece model: {error}", "tokenizer.model", "download it again"
        ) from error
    return SentencePieceModel(
        tuple(pieces),
        trainer.get(3, 1),
        bool(trainer.get(35, 0)),
        character_map,
        bool(normaliser.get(3, 1)),
        bool(normaliser.get(4, 1)),
    )
