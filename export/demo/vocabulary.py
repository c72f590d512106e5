"""A small SentencePiece vocabulary with byte fallback, written piece by piece.

The merges are learnt here, by counting pairs, because a trainer would choose the ids itself and a demo must keep the
special ids of its family where the published tokenizer has them. The file is a plain ``tokenizer.model`` of BPE type:
SentencePiece joins the adjacent pair with the best score, so the score of a piece is minus its rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
LONGEST_CHINESE = 3
_WORD = re.compile(f"{SPACE}?[A-Za-z]+|[\u4e00-\u9fff]+")
_PRINTABLE = "".join(chr(code) for code in range(33, 127)) + "，。？！、：；“”（）"


@dataclass(frozen=True)
class Layout:
    """Where the ids of a vocabulary lie.

    Attributes:
        fixed: id to (piece, type) for every special piece; ids left free below the largest of them are filled in order.
        words: texts whose characters and words the vocabulary must hold beside the corpus, e.g. role names.
        size: pieces in all.
    """

    fixed: Mapping[int, tuple[str, int]]
    words: tuple[str, ...]
    size: int


def learn_merges(texts: Iterable[str], limit: int, names: Iterable[str] = ()) -> list[str]:
    """Up to ``limit`` merged pieces, most frequent pair first; ties go to the alphabetically first pair.

    ``names`` become one piece each, whatever their frequency. A run of Chinese is no word, so no piece of it is longer
    than `LONGEST_CHINESE`.
    """
    words = Counter(word for text in texts for word in _WORD.findall(text.replace(" ", SPACE)))
    words.update({name: words.total() + 1 for name in names})
    split = {word: tuple(word) for word in words}
    merged: list[str] = []
    while len(merged) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                if len(pair[0] + pair[1]) <= LONGEST_CHINESE or word.isascii() or word.startswith(SPACE):
                    pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if best[0] + best[1] not in merged:
            merged.append(best[0] + best[1])
        split = {word: _joined(parts, best) for word, parts in split.items()}
    return merged


def _joined(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def pieces(texts: Sequence[str], layout: Layout) -> list[tuple[str, float, int]]:
    """(piece, score, type) by id.

    Raises:
        ValueError: the characters alone do not fit into ``layout.size``.
    """
    texts = [*texts, *layout.words]
    characters = list(dict.fromkeys(SPACE + _PRINTABLE + "".join(sorted(set("".join(texts)) - {" "}))))
    room = layout.size - len(layout.fixed) - 256 - len(characters)
    if room < 0:
        raise ValueError(f"{layout.size} ids cannot hold {len(characters)} characters, 256 bytes and the special pieces")
    merges = learn_merges(texts, room, layout.words)
    ordinary = [(character, -1e4 - rank, NORMAL) for rank, character in enumerate(characters)]
    free = iter(
        [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
        + [(piece, -float(rank), NORMAL) for rank, piece in enumerate(merges)]
        + ordinary
    )
    size = len(layout.fixed) + 256 + len(merges) + len(ordinary)
    return [(layout.fixed[i][0], 0.0, layout.fixed[i][1]) if i in layout.fixed else next(free) for i in range(size)]


def sentencepiece_model(rows: Sequence[tuple[str, float, int]], dummy_prefix: bool = False) -> bytes:
    """The bytes of ``tokenizer.model``: BPE, byte fallback, no normalisation; a space in front of texts if wanted."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    model = schema.ModelProto()
    for piece, score, kind in rows:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(rows)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id, model.trainer_spec.bos_id, model.trainer_spec.eos_id = 0, 1, 2
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = dummy_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)
