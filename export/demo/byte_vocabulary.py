"""A small byte-level BPE vocabulary as ``tokenizer.json``, in the forms of Qwen2 and of Llama 3.

The merges are learnt here, so that equal texts give an equal file whatever library is installed: first every character
that is no ASCII from its bytes, then the most frequent pair of pieces within the words of the published word pattern.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LONGEST_CHINESE = 3
_CASES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
QWEN2_WORDS = _CASES + "\\p{N}" + _REST
LLAMA3_WORDS = _CASES + "\\p{N}{1,3}" + _REST
"""Word patterns: Qwen/Qwen2-VL-7B-Instruct and meta-llama/Meta-Llama-3-8B, tokenizer.json."""


@dataclass(frozen=True)
class ByteLayout:
    """What a byte-level vocabulary is made of.

    Attributes:
        words: the pattern that cuts text into words.
        size: ids in all; the special tokens are the last of them, in order.
        special: texts of the special tokens.
        composed: text is brought to Unicode's composed form first.
    """

    words: str
    size: int
    special: tuple[str, ...]
    composed: bool

    def special_id(self, token: str) -> int:
        return self.size - len(self.special) + self.special.index(token)


def tokenizer_json(texts: Iterable[str], layout: ByteLayout) -> bytes:
    """The file. Ids: 256 bytes in the order of their stand-ins, merged pieces, special tokens.

    Raises:
        ValueError: the texts do not give enough merges to fill ``layout.size``.
    """
    words = _words(texts, layout.words)
    letters = sorted(_stand_ins().values())
    room = layout.size - len(letters) - len(layout.special)
    merges = _learnt(words, room)
    if len(merges) != room:
        raise ValueError(f"{len(merges)} merges for {room} ids")
    pieces = [*letters, *(left + right for left, right in merges)]
    first = len(pieces)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": first + i, "content": text, **flags} for i, text in enumerate(layout.special)],
        "normalizer": {"type": "NFC"} if layout.composed else None,
        "pre_tokenizer": _cutter(layout.words),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _cutter(words: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, as_bytes]}


def _words(texts: Iterable[str], pattern: str) -> Counter[str]:
    """How often each word comes, cut by the library that will cut it later."""
    from tokenizers import Regex, pre_tokenizers

    cutter = pre_tokenizers.Split(Regex(pattern), "isolated")
    return Counter(word for text in texts for word, _ in cutter.pre_tokenize_str(text))


def _learnt(words: Counter[str], limit: int) -> list[tuple[str, str]]:
    """Merges in order, written in stand-in letters; ties go to the alphabetically first pair."""
    merges: list[tuple[str, str]] = []
    stand_in = _stand_ins()

    def shown(text: str) -> str:
        return "".join(stand_in[byte] for byte in text.encode())

    for letter in sorted({letter for word in words for letter in word if not letter.isascii()}):
        code = shown(letter)
        for end in range(1, len(code)):
            if (code[:end], code[end]) not in merges:
                merges.append((code[:end], code[end]))
    split: dict[str, tuple[str, ...]] = {word: tuple(word) for word in words}
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                if len(pair[0] + pair[1]) <= LONGEST_CHINESE or word.isascii():
                    pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((shown(best[0]), shown(best[1])))
        split = {word: _joined(parts, best) for word, parts in split.items()}
    return merges[:limit]


def _joined(parts: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    last = ""
    for part in parts:
        if out and (last, part) == pair:
            out[-1] += part
            last = ""
        else:
            out.append(part)
            last = part
    return tuple(out)


def _stand_ins() -> dict[int, str]:
    """The printable letter of every byte in byte-level vocabularies (openai/gpt-2: src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
