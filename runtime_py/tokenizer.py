"""One tokenizer interface over the two published forms: ``tokenizer.json`` and SentencePiece ``tokenizer.model``.

Encoding is the library's own, without tokens added at either end, neither cut to a length nor filled up to one. Decoding
maps every id to bytes and joins them, the same for both forms, so that an answer can be shown token by token without ever
cutting a character.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime_py.errors import PackageError
from runtime_py.files.json_file import MEGABYTE, parse_json, read_bytes, shortened
from runtime_py.files.sentencepiece_file import MAX_TOKENS, check_model
from runtime_py.vocabulary.added_tokens import TABLES, added_tokens, completed, numbered

MAX_JSON_BYTES = 64 * MEGABYTE
JSON_ROOM = 4
"""How often a vocabulary with its merges may fill the common limits of JSON; the largest published one does so twice."""

MAX_GROWTH = 64
"""Characters that a normaliser may write for one; published ones write one."""

FILES = ("tokenizer.json", "tokenizer.model", *TABLES)
"""Every file that `load` may read."""

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Text to ids and back; implements runtime_py.preprocess.base.TokenizerLike.

    Args:
        encode: text to ids.
        pieces: the bytes each id stands for; empty for control tokens, which never show in an answer.
        ids: token text to id, added tokens included.
        added: texts of the added tokens, which are taken out of a text before the rest is cut.
        leading_space: the form puts a space in front of every text, which decoding takes off again.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        pieces: Sequence[bytes],
        ids: Mapping[str, int],
        added: Iterable[str],
        leading_space: bool,
    ) -> None:
        self._encode = encode
        self.pieces = pieces
        self.ids = ids
        self.added = frozenset(added)
        self.leading_space = leading_space

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; special tokens written in it become their ids, as in the published tokenizers."""
        return self._encode(text.encode("utf-8", "replace").decode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without control tokens; bytes that are no UTF-8 become U+FFFD."""
        stream = TokenStream(self)
        return "".join(stream.push(token) for token in ids) + stream.finish()

    def token_id(self, token: str) -> int | None:
        """The id of one token by its exact text, or None."""
        return self.ids.get(token)

    def stream(self) -> TokenStream:
        return TokenStream(self)


class TokenStream:
    """Decodes ids one at a time; what it returns, joined, is what `Tokenizer.decode` returns for all of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._trim = tokenizer.leading_space

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character lacks bytes."""
        return self._trimmed(self._decoder.decode(self._pieces[token] if 0 <= token < len(self._pieces) else b""))

    def finish(self) -> str:
        """Whatever is left when no token follows."""
        return self._trimmed(self._decoder.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if self._trim and text:
            self._trim = False
            return text.removeprefix(" ")
        return text


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint or package folder; ``tokenizer.json`` is preferred, as transformers prefers it.

    Raises:
        PackageError: there is none, or it cannot be read.
    """
    for name, reader in (("tokenizer.json", read_json), ("tokenizer.model", read_sentencepiece)):
        path = Path(folder) / name
        if path.is_file():
            try:
                with readable(path):
                    return reader(path)
            except PackageError:
                raise
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise PackageError(
                    f"{path} has another layout than the tokenizers library writes",
                    "a tokenizer file",
                    "restore the file, or export again",
                ) from error
            except Exception as error:  # both libraries raise bare RuntimeError, OSError and Exception
                raise PackageError(
                    f"{path} cannot be read: {error}", "a tokenizer file", "restore the file, or export again"
                ) from error
    raise PackageError(
        f"{folder} has no tokenizer",
        "tokenizer.json or tokenizer.model",
        "put the tokenizer's files beside the checkpoint's config.json and export again",
    )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a panic of the tokenizers library, which no ``except Exception`` catches, into an error."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PackageError(
            f"{path} makes the tokenizers library fail: {error}", "a sound tokenizer", "restore the file"
        ) from error


def _check_size(path: Path, size: int) -> None:
    if not 0 < size <= MAX_TOKENS:
        raise PackageError(
            f"{path} and the files beside it number tokens up to {size - 1:,}",
            f"at most {MAX_TOKENS:,} tokens",
            "restore the files, or export again",
        )


def read_sentencepiece(path: Path) -> Tokenizer:
    """A SentencePiece model, with the added tokens of the tables beside it, which may rename pieces."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=check_model(path))
    count = model.get_piece_size()
    texts: list[str] = model.id_to_piece(list(range(count)))
    ids = {text: index for index, text in enumerate(texts)}
    tokens = added_tokens(path.parent)
    added = numbered(tokens, ids, count)
    control = {index for index in range(count) if model.is_control(index) or model.is_unknown(index)}
    ids |= added
    size = max([count, *(index + 1 for index in added.values())])
    _check_size(path, size)
    pieces = [b""] * size
    for index, text in enumerate(texts):
        if index not in control:
            pieces[index] = _piece_bytes(text, model.is_byte(index))
    for text, index in added.items():
        if index not in control:
            pieces[index] = text.encode()
    prefixed = model.encode("a", out_type=str)[0].startswith(_SPACE)
    marked = {texts[index]: index for index in control} | added
    return Tokenizer(_split_at(marked, model.encode), pieces, ids, marked, prefixed)


def _piece_bytes(text: str, is_byte: bool) -> bytes:
    return bytes([int(text[3:5], 16)]) if is_byte else text.replace(_SPACE, " ").encode()


def _split_at(tokens: Mapping[str, int], encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """An encoder that takes ``tokens`` out first, the longest that matches at the leftmost place."""
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(re.escape(token) for token in longest_first) + ")") if tokens else None

    def split_encode(text: str) -> list[int]:
        if pattern is None:
            return encode(text)
        ids: list[int] = []
        for part in pattern.split(text):
            if part in tokens:
                ids.append(tokens[part])
            elif part:
                ids += encode(part)
        return ids

    return split_encode


def _refuse_affixes(settings: Mapping[str, Any], path: Path) -> None:
    """Byte-level and byte-fallback vocabularies have no affixes; with one, tokenizers 0.23 cuts merges inside a character
    and ends the process, which nothing can catch.
    """
    model = settings.get("model")
    stated = [
        key for key in ("continuing_subword_prefix", "end_of_word_suffix") if isinstance(model, dict) and model.get(key)
    ]
    if stated:
        raise PackageError(
            f"{path} has a {stated[0]}", "a byte-level or byte-fallback vocabulary, which has none", "restore the file"
        )


def _refuse_chance(settings: Mapping[str, Any], path: Path) -> None:
    """Dropout of merges is for training: it gives a text other ids every time."""
    model = settings.get("model")
    dropout = model.get("dropout") if isinstance(model, dict) else None
    if dropout:
        raise PackageError(
            f"{path} cuts texts at random: its model has dropout {shortened(dropout)}",
            "equal ids for equal texts",
            "write null there, as a tokenizer has it that is not being trained with",
        )


def _refuse_growth(settings: Mapping[str, Any], path: Path) -> None:
    """A normaliser puts a few characters in place of one; a chain that puts thousands makes gigabytes of a question."""
    growth = 1
    for part in _parts(settings.get("normalizer"), "normalizers"):
        written = part.get("content") if part.get("type") == "Replace" else part.get("prepend")
        growth *= max(len(written), 1) if isinstance(written, str) else 1
        if growth > MAX_GROWTH or part.get("pattern") in ({"String": ""}, {"Regex": ""}):
            raise PackageError(
                f"{path} has a normaliser that makes {shortened(written)} of little or nothing",
                f"at most {MAX_GROWTH} characters for one",
                "restore the file",
            )


def _parts(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """A normaliser, or those inside a sequence of them, at any depth."""
    if isinstance(value, dict):
        yield value
        for inner in value[key] if isinstance(value.get(key), list) else ():
            yield from _parts(inner, key)


def read_json(path: Path) -> Tokenizer:
    """A ``tokenizer.json`` of the tokenizers library whose decoder works on bytes (byte-level or byte-fallback)."""
    from tokenizers import Tokenizer as Library

    content = read_bytes(path, MAX_JSON_BYTES)
    stated, text = parse_json(content, path, strict=False, room=JSON_ROOM), content.decode("utf-8-sig")
    if not isinstance(stated, dict):
        raise PackageError(f"{path} is no tokenizer but a {type(stated).__name__}", "a JSON object", "restore the file")
    settings = completed(stated, added_tokens(path.parent), path)
    _refuse_affixes(settings, path)
    _refuse_chance(settings, path)
    _refuse_growth(settings, path)
    library = Library.from_str(text if settings == stated else json.dumps(settings))
    kinds = list(_decoder_kinds(settings.get("decoder")))
    if "ByteLevel" in kinds:
        alphabet = _byte_level_alphabet()

        def to_bytes(text: str) -> bytes:
            return bytes(alphabet[letter] for letter in text)
    elif {"ByteFallback", "Metaspace", "Replace"} & set(kinds):

        def to_bytes(text: str) -> bytes:
            return _piece_bytes(text, _BYTE_PIECE.fullmatch(text) is not None)
    else:
        raise PackageError(
            f"{path} decodes by {kinds or 'nothing'}", "a byte-level or byte-fallback decoder", "convert the tokenizer"
        )
    vocabulary: dict[str, int] = library.get_vocab(with_added_tokens=True)
    added = {row["content"]: row for row in settings.get("added_tokens", []) if row["content"]}
    _check_size(path, max(vocabulary.values(), default=-1) + 1)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for text, index in vocabulary.items():
        row = added.get(text)
        if row is None:
            pieces[index] = to_bytes(text)
        elif not row.get("special", False):
            pieces[index] = text.encode()
    leading = "Strip" in kinds or any(
        part.get("prepend_scheme") in {"always", "first"} for part in _decoder_parts(settings.get("decoder"))
    )

    def encode(text: str) -> list[int]:
        with readable(path):
            return library.encode(text, add_special_tokens=False).ids

    return Tokenizer(encode, pieces, vocabulary, added, leading)


def _decoder_parts(decoder: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _decoder_kinds(decoder: Mapping[str, Any] | None) -> Iterable[str]:
    return (part["type"] for part in _decoder_parts(decoder))


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level vocabularies (openai/gpt-2: src/encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
