"""A checkpoint's tokenizer held against its embedding table and against the other tokenizers in its folder, before any work.

tokenizer.json is what transformers opens where there is one, and so do we. Beside it may lie what it was made from
(tokenizer.model; vocab.json and merges.txt). Where these give a token two ids they belong to two models and nothing tells
which is the weights', so the folder is refused. Where tokenizer.json knows more tokens, or cuts a text otherwise, it is the
newer one or another reading of the same vocabulary: it is used, as transformers uses it, and the difference is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.package.tokenizer_files import JSON, MODEL, different, published_tokenizer
from export.package.tokenizer_json import convertible, out_of_reach, parse_model
from export.package.tokenizer_probes import probes
from runtime_py.errors import CheckpointError, UnsupportedModelError
from runtime_py.files.json_file import MEGABYTE, read_json, shortened
from runtime_py.tokenizer import Tokenizer, read_sentencepiece
from runtime_py.vocabulary.added_tokens import CONFIG, FLAGS, MAX_SETTINGS_BYTES, added_tokens

MAX_VOCABULARY_BYTES = 64 * MEGABYTE
SHOWN = 20
"""Tokens that an error names; the rest are counted."""

WIDENING = tuple(flag for flag in FLAGS if flag != "normalized")

OTHER_FORMS = ("vocab.json", "*.tiktoken")
"""Vocabularies that are no tokenizer without the code published beside them."""


def check_tokenizer(folder: Path, rows: int) -> tuple[str, ...]:
    """Open the tokenizer of a checkpoint's folder; what the user should know of it.

    Args:
        rows: of the embedding table.

    Raises:
        CheckpointError: there is none that can be read, an id lies beyond the table, or two tokenizers disagree.
        UnsupportedModelError: a SentencePiece model that has no tokenizer.json and cannot get one.
    """
    published, model = folder / JSON, folder / MODEL
    if not published.is_file() and not model.is_file():
        forms = sorted(path.name for form in OTHER_FORMS for path in folder.glob(form))
        raise CheckpointError(
            f"{folder} has no tokenizer that can be read" + (f", only {', '.join(forms)}" if forms else ""),
            f"{JSON} or {MODEL}",
            "save it with AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes tokenizer.json",
        )
    words = published_tokenizer(folder)
    _refuse_beyond(words, rows, published if published.is_file() else model)
    if not published.is_file():
        _refuse_other_cuts(folder)
        return _of_model(model)
    notes = [*_against_model(words, model)] if model.is_file() else []
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if vocabulary.is_file():
        _against_vocabulary(words, vocabulary)
    if vocabulary.is_file() and merges.is_file():
        notes += _against_merges(published, merges)
    return tuple(notes)


def _of_model(model: Path) -> tuple[str, ...]:
    """What is to be known of the tokenizer.json that is made of a SentencePiece model."""
    apart = out_of_reach(model, convertible(model))
    if not apart:
        return ()
    return (
        f"{len(apart)} pieces of {model.name} (emoji sequences, mostly) become added tokens of {JSON}; two of them side by "
        "side may be cut elsewhere than published",
    )


def _refuse_other_cuts(folder: Path) -> None:
    """Refuse settings by which a SentencePiece tokenizer of transformers cuts text around added tokens otherwise.

    ``legacy`` false takes the prefix space off what follows one (huggingface/transformers v4.45,
    models/llama/tokenization_llama.py, tokenize), ``lstrip``, ``rstrip`` and ``single_word`` take in or leave what stands
    beside it (tokenization_utils.py, tokenize). In a tokenizer.json the tokenizers library does all that.
    """
    settings: Any = read_json(folder / CONFIG, MAX_SETTINGS_BYTES) if (folder / CONFIG).is_file() else {}
    wrong = ["'legacy' false"] if settings.get("legacy") is False else []
    wrong += [
        f"{shortened(token.text)} with {flag}"
        for token in added_tokens(folder)
        for flag in WIDENING
        if token.flags.get(flag)
    ]
    if wrong:
        raise UnsupportedModelError(
            f"{folder / CONFIG} changes how text around added tokens is cut, which is not built for a {MODEL} alone: "
            + _shown(wrong),
            f"such settings in a {JSON}",
            f"save it with AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes {JSON}",
        )


def _refuse_beyond(words: Tokenizer, rows: int, path: Path) -> None:
    beyond = sorted((index, text) for text, index in words.ids.items() if index >= rows)
    if beyond:
        raise CheckpointError(
            f"{len(beyond)} token(s) of {path} and the tables beside it have no row in the embedding table: "
            + _shown(f"{shortened(text)} {index}" for index, text in beyond),
            f"ids below {rows}, the rows of the table",
            "restore the tokenizer that belongs to these weights, or save the model again after resize_token_embeddings",
        )


def _shown(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def _against_model(words: Tokenizer, model: Path) -> list[str]:
    """What tokenizer.json and tokenizer.model do not share."""
    other = read_sentencepiece(model)
    renamed = {index: text for text, index in words.ids.items()}
    strange = {piece: index for index, (piece, _, _) in enumerate(parse_model(model).pieces) if other.ids[piece] == index}
    apart = {
        piece: index
        for piece, index in strange.items()
        if words.ids.get(piece, -1) != index and (piece in words.ids or not _added(words, renamed.get(index)))
    }
    if apart:
        raise _numbered_otherwise(words, model, apart, f"{JSON} or {model.name}")
    new = sorted((index, text) for text, index in words.ids.items() if text not in other.ids)
    notes = []
    if new:
        notes.append(
            f"{JSON} knows tokens that {model.name} does not, and is used: "
            + _shown(f"{shortened(text)} {index}" for index, text in new)
        )
    pairs = ((text, other.encode(text), words.encode(text)) for text in probes(sorted(set(other.ids) & set(words.added))))
    wrong = [(text, theirs, ours) for text, theirs, ours in pairs if ours != theirs]
    if wrong:
        notes.append(
            f"{JSON} cuts {len(wrong)} text(s) otherwise than {model.name}, and is used, as transformers uses it: "
            + different(wrong)
        )
    return notes


def _numbered_otherwise(words: Tokenizer, other: Path, apart: Mapping[str, int], either: str) -> CheckpointError:
    """The error of another file of the same tokenizer that gives some tokens other ids."""
    return CheckpointError(
        f"{JSON} and {other} number {len(apart)} token(s) otherwise: "
        + _shown(f"{shortened(text)} {words.ids.get(text, 'none')} and {index}" for text, index in apart.items()),
        "two forms of one tokenizer",
        f"keep the one that belongs to these weights: remove {either}",
    )


def _added(words: Tokenizer, text: str | None) -> bool:
    return text is not None and text in words.added


def _against_vocabulary(words: Tokenizer, path: Path) -> None:
    """Refuse a vocab.json that numbers a token otherwise than tokenizer.json."""
    vocabulary: Any = read_json(path, MAX_VOCABULARY_BYTES, CheckpointError, "download the file again")
    if not isinstance(vocabulary, Mapping):
        raise CheckpointError(f"{path} is no vocabulary", "an object of tokens and their ids", "download the file again")
    apart = {text: index for text, index in vocabulary.items() if words.ids.get(text) != index}
    if apart:
        raise _numbered_otherwise(words, path, apart, f"{JSON}, or {path.name} and merges.txt")


def _against_merges(published: Path, path: Path) -> list[str]:
    """A merges.txt that orders its merges otherwise than tokenizer.json is said; it is not read for anything else."""
    try:
        lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "lines of UTF-8", "download the file again") from error
    theirs = [line for line in lines if line and not line.startswith("#version")]
    stored = json.loads(published.read_text(encoding="utf-8-sig"))["model"].get("merges") or []
    ours = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored]
    if ours == theirs:
        return []
    return [
        f"{JSON} and {path.name} list other merges ({len(ours)} and {len(theirs)}); {JSON} is used, as transformers uses it"
    ]
