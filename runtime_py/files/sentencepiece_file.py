"""A SentencePiece ``tokenizer.model``, looked over before the library's C++ reads it, which trusts what it finds.

Source of the layout: google/sentencepiece, src/sentencepiece_model.proto; of the compiled normaliser: src/normalizer.cc
(``DecodePrecompiledCharsMap``) and its trie, s-yata/darts-clone, include/darts.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runtime_py.errors import PackageError
from runtime_py.files.json_file import MEGABYTE, Refusal, read_bytes
from runtime_py.files.protobuf import fields, message_of

MAX_MODEL_BYTES = 64 * MEGABYTE
MAX_TOKENS = 1 << 20
"""Four times the largest published vocabulary."""

MAX_PIECE_BYTES = 4096
"""Of one piece's message; the trainer's longest pieces have some hundred bytes."""

PIECE, TRAINER, NORMALISER, DENORMALISER = 1, 2, 3, 5
CHARACTER_MAP = 2
"""Field numbers of a model, and of a normaliser's compiled map."""

HAS_WIDE_OFFSET, OFFSET_SHIFT, LEAF = 1 << 9, 10, 1 << 31
"""A unit of the trie: flags, and where the offset to its children begins."""


def check_model(path: Path, refusal: Refusal = PackageError) -> bytes:
    """The content of a SentencePiece file whose sizes and compiled maps are sound.

    Raises:
        EdgeproofError: what ``refusal`` makes: the file is too large, no such model, or would be read out of bounds.
    """
    content = read_bytes(path, MAX_MODEL_BYTES, refusal)
    count = 0
    try:
        for number, value in fields(memoryview(content)):
            if number == PIECE:
                count += 1
                if count > MAX_TOKENS or isinstance(value, int) or len(value) > MAX_PIECE_BYTES:
                    raise ValueError(f"more than {MAX_TOKENS:,} pieces, or one of more than {MAX_PIECE_BYTES} bytes")
            elif number in (NORMALISER, DENORMALISER):
                check_character_map(bytes(_field(message_of(value), CHARACTER_MAP)))
        if not count:
            raise ValueError("no pieces")
    except ValueError as error:
        raise refusal(f"{path} is no SentencePiece model: {error}", "tokenizer.model", "download it again") from error
    return content


def _field(message: memoryview, wanted: int) -> memoryview:
    """The bytes of a field, the last where it is there several times, as protocol buffers have it."""
    values: Mapping[int, int | memoryview] = dict(fields(message))
    return message_of(values.get(wanted, memoryview(b"")))


def check_character_map(content: bytes) -> None:
    """Raise ValueError unless every step that a compiled normaliser can take stays inside it.

    The map is the length of a trie in bytes, the trie (a double array of 32-bit units), and texts that end in a zero.
    """
    if not content:
        return
    size = int.from_bytes(content[:4], "little")
    if len(content) <= 4 + size or size < 1024 or size % 4:
        raise ValueError("a character map whose trie is cut off")
    units = np.frombuffer(content, np.dtype("<u4"), size // 4, 4).astype(np.int64)
    texts = content[4 + size :]
    if texts[-1] != 0:
        raise ValueError("a character map whose last text does not end")
    leaves = (units & LEAF) != 0
    if (units[leaves] & ~LEAF >= len(texts)).any():
        raise ValueError("a character map that points behind its texts")
    places = np.arange(len(units), dtype=np.int64)
    children = places ^ ((units >> OFFSET_SHIFT) << ((units & HAS_WIDE_OFFSET) >> 6))
    if ((children[~leaves] | 0xFF) >= len(units)).any():
        raise ValueError("a character map that points behind its trie")
