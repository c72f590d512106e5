"""A ``tokenizer.json`` made from a SentencePiece model; `export.package.tokenizer_files` proves it equal.

A SentencePiece BPE model merges the adjacent pair whose joined text is the best-scored piece. ``tokenizers`` merges by
ranked pairs, both halves of which must be pieces; so each piece contributes every way to cut it in two, ranked by the
piece's score, and pieces that only SentencePiece can reach (an emoji sequence whose single characters are no pieces)
become added tokens. Both then give the same ids, but where two such pieces stand side by side: SentencePiece cuts there by
score, added tokens are cut from the left.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError, UnsupportedModelError
from runtime_py.files.protobuf import fields, message_of
from runtime_py.files.sentencepiece_file import CHARACTER_MAP, NORMALISER, PIECE, TRAINER, check_model
from runtime_py.tokenizer import read_sentencepiece
from runtime_py.vocabulary.added_tokens import added_tokens, numbered

SPACE = "\u2581"
ZERO = bytes(4)


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


def convertible(source: Path) -> SentencePieceModel:
    """A SentencePiece model that `convert` has a form for.

    Raises:
        CheckpointError: it is damaged.
        UnsupportedModelError: it is no plain BPE model.
    """
    model = parse_model(source)
    if model.model_type != 2 or not model.byte_fallback or model.character_map or model.collapse_spaces:
        raise UnsupportedModelError(
            f"{source} is a SentencePiece model of type {model.model_type} with byte fallback {model.byte_fallback}, "
            f"a character map of {len(model.character_map)} bytes, space collapsing {model.collapse_spaces}",
            "a BPE model with byte fallback, identity normaliser and spaces kept",
            "put the tokenizer.json published with the model into the checkpoint folder",
        )
    return model


def convert(source: Path) -> dict[str, Any]:
    """The ``tokenizer.json`` object of a SentencePiece BPE model, with the added tokens of the files beside it.

    Raises:
        CheckpointError, UnsupportedModelError: see `convertible`; or the ids of added tokens leave a hole.
    """
    model = convertible(source)
    known = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    renamed = {index: text for text, index in numbered(added_tokens(source.parent), known, len(model.pieces)).items()}
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
    added |= set(out_of_reach(source, model) - added)
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


def out_of_reach(source: Path, model: SentencePieceModel) -> set[int]:
    """Pieces SentencePiece forms from characters that are no pieces themselves, which ranked merges cannot."""
    singles = {text for text, _, kind in model.pieces if kind is PieceType.NORMAL and len(text) == 1}
    candidates = {
        text: index
        for index, (text, _, kind) in enumerate(model.pieces)
        if kind is PieceType.NORMAL and len(text) > 1 and any(letter not in singles for letter in text)
    }
    tokenizer = read_sentencepiece(source)
    return {index for text, index in candidates.items() if tokenizer.encode(text.replace(SPACE, " ")) == [index]}


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
