"""Tokens beside a vocabulary, from every place in which the field keeps them, and a ``tokenizer.json`` that holds them all.

    tokenizer_config.json     added_tokens_decoder: id to token; names of special tokens, without ids
    added_tokens.json         token to id
    special_tokens_map.json   names of special tokens, without ids

A token without an id has the vocabulary's, and the next free one where the vocabulary lacks it, as in transformers
(huggingface/transformers, src/transformers/tokenization_utils_base.py and tokenization_utils_fast.py of 4.57).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime_py.errors import PackageError
from runtime_py.files.json_file import MEGABYTE, read_optional_json, shortened
from runtime_py.files.sentencepiece_file import MAX_TOKENS

CONFIG, LIST, MAP = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
TABLES = (CONFIG, LIST, MAP)

MAX_SETTINGS_BYTES = 8 * MEGABYTE

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens by what they are for, in the order in which transformers adds those that are new."""

OTHERS = ("additional_special_tokens", "extra_special_tokens")
"""Further special tokens: a list, or an object by name."""

NUMBER = re.compile(r"-?[0-9]{1,40}", re.ASCII)

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True)
class AddedToken:
    """One token of a table.

    Attributes:
        id: None where the table does not say.
        flags: how the tokenizers library matches it, by the names of `FLAGS`; what is left out is false.
        file: the table's name.
    """

    text: str
    id: int | None
    special: bool
    file: str
    flags: Mapping[str, bool]

    def row(self, index: int) -> dict[str, Any]:
        """The token as ``tokenizer.json`` lists it."""
        return {"id": index, "content": self.text, **{flag: self.flags.get(flag, False) for flag in FLAGS}} | {
            "special": self.special
        }


def added_tokens(folder: Path) -> tuple[AddedToken, ...]:
    """Every token of the tables in a folder, those with ids first and by id, each text once. One of no letter is none, as
    for the tokenizers library: it would be found between any two.

    Raises:
        PackageError: a table that is none, an id out of range, or two tables that disagree.
    """
    tables = {name: _table(folder / name) for name in TABLES}
    numbered: dict[str, AddedToken] = {}
    by_id: dict[int, AddedToken] = {}
    special = dict(special_tokens(tables[CONFIG], tables[MAP], folder))
    for token in (*_decoder(tables[CONFIG], folder / CONFIG), *_listed(tables[LIST], folder / LIST, special)):
        assert token.id is not None
        if not token.text:
            continue
        other = numbered.setdefault(token.text, token)
        same = by_id.setdefault(token.id, token)
        if other.id != token.id or same.text != token.text:
            first = other if other.id != token.id else same
            raise PackageError(
                f"{folder / token.file} gives {shortened(token.text)} the id {token.id}, "
                f"{first.file} gives {shortened(first.text)} the id {first.id}",
                "one id for a token in every file",
                "keep the tokenizer files of one model, those that belong to the weights",
            )
    in_order = [by_id[index] for index in sorted(by_id)]
    unnumbered = [AddedToken(text, None, True, file, {}) for text, file in special.items() if text not in numbered]
    return (*(replace(token, special=token.special or token.text in special) for token in in_order), *unnumbered)


def _table(path: Path) -> Mapping[str, Any]:
    value = read_optional_json(path, MAX_SETTINGS_BYTES)
    if not isinstance(value, dict):
        raise _another_form(path, f"it is a {type(value).__name__}")
    return value


def _another_form(path: Path, why: str) -> PackageError:
    return PackageError(f"{path} lists added tokens in another form: {why}", "texts and their ids", "restore the file")


def _decoder(config: Mapping[str, Any], path: Path) -> Iterator[AddedToken]:
    """Rows of ``added_tokens_decoder`` by their ids."""
    rows = config.get("added_tokens_decoder") or {}
    if not isinstance(rows, dict):
        raise _another_form(path, "added_tokens_decoder is no object")
    for key, row in rows.items():
        if not isinstance(row, dict) or not isinstance(row.get("content"), str):
            raise _another_form(path, f"the token {shortened(key)} has no content")
        index = _number(int(key) if NUMBER.fullmatch(key) else key, path)
        yield AddedToken(row["content"], index, row.get("special") is True, CONFIG, _flags(row))


def _listed(listed: Mapping[str, Any], path: Path, special: Mapping[str, str]) -> Iterator[AddedToken]:
    """``added_tokens.json`` says ids alone; transformers matches what is not special in normalised text."""
    for text, index in listed.items():
        yield AddedToken(text, _number(index, path), text in special, LIST, {"normalized": text not in special})


def _flags(row: Mapping[str, Any]) -> dict[str, bool]:
    """As the library has them: what is not special is looked for in normalised text unless the row says otherwise."""
    return {flag: row.get(flag) is True for flag in FLAGS} | (
        {} if isinstance(row.get("normalized"), bool) else {"normalized": row.get("special") is not True}
    )


def _number(value: object, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _another_form(path, f"{shortened(value)} is no id")
    if not 0 <= value < MAX_TOKENS:
        raise PackageError(f"{path} gives a token the id {shortened(value)}", f"0 to {MAX_TOKENS - 1}", "restore the file")
    return value


def special_tokens(config: Mapping[str, Any], named: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """Texts of the special tokens that the tables name, and the file that names each, in the order of transformers."""
    seen = set()
    for keys in (ROLES, OTHERS):
        for table, file in ((config, CONFIG), (named, MAP)):
            for key in keys:
                for text in _texts(table.get(key), folder / file, key):
                    if text and text not in seen:
                        seen.add(text)
                        yield text, file


def roles(folder: Path) -> dict[str, str]:
    """The special tokens that the tables of a folder name by what they are for; tokenizer_config.json comes first."""
    tables = [(name, _table(folder / name)) for name in (CONFIG, MAP)]
    rows = {key: [text for name, table in tables for text in _texts(table.get(key), folder / name, key)] for key in ROLES}
    return {key: texts[0] for key, texts in rows.items() if texts and texts[0]}


def _texts(value: object, path: Path, key: str) -> list[str]:
    """The texts of one key: a text, an object with ``content``, a list of either, or an object of them by name."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return [value["content"]]
    if key in OTHERS and isinstance(value, dict | list) and len(value) <= MAX_TOKENS:
        items: Iterable[object] = value.values() if isinstance(value, dict) else value
        return [text for item in items for text in _texts(item, path, "")]
    raise _another_form(path, f"{key or 'a special token'} is {shortened(value)}")


def numbered(tokens: Iterable[AddedToken], vocabulary: Mapping[str, int], size: int) -> dict[str, int]:
    """Text to id of every token of tables: the id stated, the vocabulary's, or the next free one.

    Args:
        vocabulary: text to id.
        size: ids of the vocabulary, used or not.
    """
    ids: dict[str, int] = {}
    following = size
    for token in tokens:
        index = token.id if token.id is not None else vocabulary.get(token.text)
        if index is None:
            index = following
        following = max(following, index + 1)
        ids[token.text] = index
    return ids


def completed(settings: Mapping[str, Any], tokens: Iterable[AddedToken], path: Path) -> dict[str, Any]:
    """A ``tokenizer.json`` with every token of the tables beside it, without truncation and padding.

    What is complete comes back equal. Tokens are added as the library adds them when transformers loads the folder, and
    what ``added_tokens_decoder`` says of a token's surroundings comes before what the file says (transformers 5.24,
    tokenization_utils_tokenizers.py, ``tokens_to_add``).

    Raises:
        PackageError: a table and the file give a text or an id different meanings, or an id would leave a hole.
    """
    rows: list[dict[str, Any]] = list(settings.get("added_tokens") or [])
    texts: dict[str, int] = dict(_vocabulary(settings["model"])) | {row["content"]: row["id"] for row in rows}
    names = {index: text for text, index in texts.items()}
    listed = {row["content"] for row in rows}
    following = max(names, default=-1) + 1
    described: dict[str, dict[str, bool]] = {}
    for token in tokens:
        index = token.id if token.id is not None else texts.get(token.text, following)
        if texts.get(token.text, index) != index or names.get(index, token.text) != token.text or index > following:
            raise PackageError(
                f"{path.parent / token.file} gives {shortened(token.text)} the id {index}; {path.name} "
                + _meaning(token.text, index, texts, names, following),
                "one id for a token in every file",
                "keep the tokenizer files of one model, those that belong to the weights",
            )
        if token.text not in listed:
            listed.add(token.text)
            rows.append(token.row(index))
        elif token.file == CONFIG and token.id is not None:
            described[token.text] = dict(token.flags)
        texts[token.text], names[index] = index, token.text
        following = max(following, index + 1)
    rows = [{**row, **described.get(row["content"], {})} for row in rows]
    whole = {**settings, "added_tokens": sorted(rows, key=lambda row: row["id"])}
    return {**whole, **{key: None for key in ("truncation", "padding") if settings.get(key) is not None}}


def _meaning(text: str, index: int, texts: Mapping[str, int], names: Mapping[int, str], following: int) -> str:
    if text in texts:
        return f"gives it {texts[text]}"
    if index in names:
        return f"gives that id to {shortened(names[index])}"
    return f"has no tokens from {following} to {index - 1}"


def _vocabulary(model: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Text to id of a model of the tokenizers library: an object, or a unigram model's list of texts and scores."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((row[0], index) for index, row in enumerate(vocabulary))
