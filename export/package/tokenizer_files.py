"""The tokenizer of a package: one ``tokenizer.json`` proven equal to the published tokenizer, and a config that opens it.

Whatever form the checkpoint has, a package holds ``tokenizer.json`` and ``tokenizer_config.json`` and no other tokenizer, so
that its runtime and everybody else read one file. The first holds every added token and neither truncation nor padding; the
second names the class that reads it as it stands, PreTrainedTokenizerFast. With the published class names transformers
builds the parts of some tokenizers anew, and code that would come along does not.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.package.aside import SUFFIX, written_aside
from export.package.journal import write_json
from export.package.tokenizer_json import convert
from export.package.tokenizer_probes import probes
from runtime_py import tokenizer
from runtime_py.errors import CheckpointError, PackageError
from runtime_py.tokenizer import Tokenizer
from runtime_py.vocabulary.added_tokens import CONFIG, MAP, ROLES, added_tokens, completed, roles, special_tokens

JSON, MODEL = "tokenizer.json", "tokenizer.model"

CLASS = "PreTrainedTokenizerFast"

KEPT = {"model_max_length": int, "padding_side": str, "truncation_side": str}
"""Keys of a published tokenizer_config.json that a package's keeps beside the special tokens, and their types."""

OtherIds = tuple[str, list[int], list[int]]
"""A text, its published ids, and the others."""

SHOWN = 3
"""Texts of other ids that an error spells out."""

_proven: set[bytes] = set()
"""Digests of published tokenizers with a tokenizer.json that was proven equal."""


def published_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, as the runtime reads it.

    Raises:
        CheckpointError: there is none, it cannot be read, or its files disagree.
    """
    try:
        return tokenizer.load(folder)
    except PackageError as error:
        raise CheckpointError(error.what, error.expected, error.next_step) from error


def write_tokenizer(checkpoint: Path, out: Path) -> list[Path]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into the folder ``out``; their paths in it.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or what would be written gives other ids.
        UnsupportedModelError: the SentencePiece model is no plain BPE model.
    """
    ensure_tokenizer_json(checkpoint, out / JSON)
    return [Path(JSON), *write_tokenizer_config(checkpoint, out)]


def write_tokenizer_config(checkpoint: Path, out: Path) -> list[Path]:
    """Write ``tokenizer_config.json`` alone."""
    write_json(out / CONFIG, tokenizer_config(checkpoint))
    return [Path(CONFIG)]


def ensure_tokenizer_json(checkpoint: Path, out: Path) -> Path:
    """Write the file ``out`` (``.../tokenizer.json``) from what the checkpoint has, and return it.

    A published file to which nothing is to be added, and in which nothing is to be switched off, is copied byte for byte.

    Raises:
        CheckpointError, UnsupportedModelError: see `write_tokenizer`.
    """
    words = published_tokenizer(checkpoint)
    published = checkpoint / JSON
    content = published.read_bytes() if published.is_file() else b""
    stated = json.loads(content.decode("utf-8-sig")) if content else None
    value = convert(checkpoint / MODEL) if stated is None else completed(stated, added_tokens(checkpoint), published)
    if value != stated or content.startswith(codecs.BOM_UTF8):
        content = json.dumps(value, ensure_ascii=False).encode()

    with written_aside(out) as aside:
        aside.write_bytes(content)
        check_equal(words, aside)
        _proven.add(_digest(checkpoint, aside))
    return out


def proven_equal(checkpoint: Path, written: Path) -> bool:
    """Whether this process wrote this very tokenizer.json from these very files: then it has asked it all that `other_ids`
    asks, which takes seconds with a large vocabulary.
    """
    return _digest(checkpoint, written) in _proven


def _digest(checkpoint: Path, written: Path) -> bytes:
    digest = hashlib.sha256()
    for path in (*(checkpoint / name for name in tokenizer.FILES), written):
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else bytes(32))
    return digest.digest()


def check_equal(words: Tokenizer, written: Path) -> None:
    """Raise CheckpointError unless a written tokenizer.json gives every text the published ids (`other_ids`)."""
    wrong, asked = other_ids(words, written)
    if wrong:
        raise CheckpointError(
            f"{written.name.removesuffix(SUFFIX)} gives other ids than the published tokenizer for {len(wrong)} of "
            f"{asked} texts: " + different(wrong),
            "equal ids",
            "put the tokenizer.json published with the model into the checkpoint folder",
        )


def other_ids(words: Tokenizer, written: Path) -> tuple[list[OtherIds], int]:
    """Texts to which the tokenizers library, asked as a stranger asks it, gives other ids by a tokenizer.json; of how many.

    Every token's own text is compared, and `export.package.tokenizer_probes.probes`. The old text of a piece that a table
    renames (InternLM2's "[UNUSED_TOKEN_145]" became <|im_end|>) is not: tokenizer.json has one text for an id, so it is
    ordinary text in a package.

    Args:
        words: the published tokenizer.
        written: the file.
    """
    from tokenizers import Tokenizer as Library

    with tokenizer.readable(written):
        library = Library.from_file(str(written))
    added = [token.content for token in library.get_added_tokens_decoder().values()]
    renamed = {words.ids[text] for text in words.added}
    own = [text for text, index in words.ids.items() if text in words.added or index not in renamed]
    texts = [*probes(added), *own]
    pairs = ((text, words.encode(text), library.encode(text, add_special_tokens=False).ids) for text in texts)
    return [(text, ours, theirs) for text, ours, theirs in pairs if ours != theirs], len(texts)


def different(rows: Iterable[OtherIds]) -> str:
    """The first texts of unequal ids, cut where they begin to differ."""
    shown = []
    for text, ours, theirs in list(rows)[:SHOWN]:
        at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        shown.append(f"{text[:40]!r}: {ours[at : at + 8]} became {theirs[at : at + 8]}")
    return "; ".join(shown)


def tokenizer_config(checkpoint: Path) -> dict[str, Any]:
    """What a package's tokenizer_config.json says: the class that reads tokenizer.json as it is, and the special tokens.

    Everything that would change how text is cut, that fetches code, or that tokenizer.json says already is left out:
    ``add_prefix_space``, ``add_bos_token``, ``legacy``, ``split_special_tokens``, ``auto_map``, ``added_tokens_decoder``, a
    template (a package has its own).
    """
    published, named = (_object(checkpoint / name) for name in (CONFIG, MAP))
    known = roles(checkpoint)
    others = [text for text, _ in special_tokens(published, named, checkpoint) if text not in known.values()]
    return {
        "tokenizer_class": CLASS,
        "clean_up_tokenization_spaces": False,
        **{key: published[key] for key, kind in KEPT.items() if type(published.get(key)) is kind},
        **{role: known[role] for role in ROLES if role in known},
        **({"additional_special_tokens": others} if others else {}),
    }


def _object(path: Path) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    return value
