"""Ids of special tokens by their text, from the tokenizer's own files; never worked out from one another.

Only tables of added tokens are read (tokenizer.json's, tokenizer_config.json's, added_tokens.json), no tokenizer is built:
a plan needs them before any library is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from export.families.config.documents import read_optional
from export.families.config.section import Section
from runtime_py.errors import CheckpointError

TOKENS = "added_tokens"
"""The key of a family's config under which the tokens stand, text to id."""

FILE = "added_tokens.json"

ROLES, ROLES_FILE = "token_roles", "special_tokens_map.json"
"""The key under which it stands what tokens are for, role to text, and the file that says so and nothing else."""

END = "eos_token"

MOST_TOKENIZER_BYTES = 256 << 20
MOST_ID = 1 << 31


def added_tokens(folder: Path) -> dict[str, int]:
    """Text to id of every added token of a tokenizer's folder; {} without a table.

    Raises:
        CheckpointError: a table that is none.
    """
    config = read_optional(folder / "tokenizer_config.json")
    listed = read_optional(folder / FILE)
    rows = Section(config, "tokenizer_config.json").section("added_tokens_decoder")
    decoder = {content: _number(index) for index, content in _contents(rows)}
    tokens = {text: Section(listed, FILE).integer(text, 0, MOST_ID) for text in listed} | decoder
    return tokens | _of_tokenizer_json(folder / "tokenizer.json")


def named_end(folder: Path) -> dict[str, str]:
    """The token that ends a text by the tokenizer's own settings, under its role; {} where they do not say.

    Raises:
        CheckpointError: it is no text.
    """
    for name in ("tokenizer_config.json", ROLES_FILE):
        table = Section(read_optional(folder / name), name)
        token = table.values.get(END)
        text = table.section(END).text("content", "") if isinstance(token, Mapping) else table.text(END, "")
        if text:
            return {END: text}
    return {}


def end_of(config: Section, published: Mapping[str, int], vocabulary: int) -> tuple[int, ...]:
    """The id of the token that the tokenizer ends a text with; none where no table has it.

    Args:
        published: text to published id of the family's marks, which stand in the vocabulary itself.

    Raises:
        CheckpointError: an id beyond the vocabulary.
    """
    text, table = config.section(ROLES, "the tokenizer").text(END, ""), config.section(TOKENS, "the tokenizer")
    if table.has(text):
        return (table.integer(text, 0, vocabulary - 1),)
    return (published[text],) if published.get(text, vocabulary) < vocabulary else ()


def _contents(rows: Section) -> Iterable[tuple[str, str]]:
    for index in rows.values:
        yield index, rows.section(index).text("content")


def _number(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 10:
        raise CheckpointError(
            f"tokenizer_config.json: added_tokens_decoder has the key {text[:40]!r}", "token ids", "download the file again"
        )
    return int(text)


def _of_tokenizer_json(path: Path) -> dict[str, int]:
    rows = read_optional(path, MOST_TOKENIZER_BYTES).get("added_tokens") or []
    if not isinstance(rows, list):
        raise CheckpointError(f"{path}: added_tokens is no list", "a list of tokens", "download the file again")
    tokens = {}
    for place, row in enumerate(rows):
        section = Section({str(place): row}, path.name, "added_tokens.").section(str(place))
        tokens[section.text("content")] = section.integer("id", 0, MOST_ID)
    return tokens


def marks_of(
    config: Section, published: Mapping[str, int], vocabulary: int, stated: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Ids of a family's marks by their text: as the tokenizer has it, else as the config states it, else as published.

    A mark whose published id the vocabulary lacks, and that nothing else numbers, belongs to another vocabulary and is left
    out.

    Args:
        published: text to published id.
        stated: text to the id that a key of config.json holds.

    Raises:
        CheckpointError: the tokenizer's table lacks such a mark, or names an id beyond the vocabulary.
    """
    table = config.section(TOKENS, "the tokenizer")
    usual = {**published, **(stated or {})}
    marks: dict[str, int] = {}
    for text, index in usual.items():
        if table.has(text):
            marks[text] = table.integer(text, 0, vocabulary - 1)
        elif index < vocabulary:
            marks[text] = index
        elif table.values:
            raise CheckpointError(
                f"the tokenizer has no token {text}",
                f"{text} among the added tokens of tokenizer.json, tokenizer_config.json or {FILE}",
                "copy the tokenizer files that belong to these weights",
            )
    return marks


def known_marks(config: Section, texts: Iterable[str], vocabulary: int) -> dict[str, int]:
    """Ids of marks that have no published id, by their text; {} where no table of tokens is at hand.

    Raises:
        CheckpointError: the table lacks one, or names an id beyond the vocabulary.
    """
    return marks_of(config, dict.fromkeys(texts, vocabulary), vocabulary)
