"""The tokenizer files beside a phone's weights, and what mlc-chat-config.json says about them.

The phone's runtime reads ``tokenizer.json`` alone; its rules are those of mlc-ai/mlc-llm, cpp/tokenizers/tokenizers.cc
(``DetectTokenizerInfo``), its files those of python/mlc_llm/interface/gen_config.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError

JSON = "tokenizer.json"
FILES = (JSON, "tokenizer_config.json")
"""In upstream's order; a package has no others (`export.package.tokenizer_files`)."""


def copy_tokenizer(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer beside a phone's weights; nothing without one.

    Args:
        source: a folder with a ``tokenizer.json`` that holds everything, as the top of a package does.

    Returns:
        their names.
    """
    names = [name for name in FILES if (source / name).is_file()] if (source / JSON).is_file() else []
    for name in names:
        partial = folder / (name + ".partial")
        shutil.copyfile(source / name, partial)
        partial.replace(folder / name)
    return names


def tokenizer_info(folder: Path) -> dict[str, Any]:
    """How the runtime turns tokens back into text, read from ``folder``/tokenizer.json; defaults when it is missing."""
    value = _read(folder)
    decoders, normalisers = _steps(value.get("decoder"), "decoders"), _steps(value.get("normalizer"), "normalizers")
    kinds = [step["type"] for step in decoders if step["type"] in ("ByteLevel", "ByteFallback")]
    return {
        "token_postproc_method": "byte_level" if kinds[:1] == ["ByteLevel"] else "byte_fallback",
        "prepend_space_in_encode": any(
            step["type"] == "Prepend" and step.get("prepend") == "\u2581" for step in normalisers
        ),
        "strip_space_in_decode": any(
            step["type"] == "Strip" and (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)
            for step in decoders
        ),
    }


def active_vocabulary(folder: Path, default: int) -> int:
    """Tokens that ``folder``/tokenizer.json knows, added ones included; ``default`` when it is missing.

    Raises:
        CheckpointError: two added tokens have the same text, which breaks the phone's tokenizer.
    """
    if not (folder / JSON).is_file():
        return default
    contents = [token["content"] for token in _read(folder).get("added_tokens", [])]
    twice = sorted({content for content in contents if contents.count(content) > 1})
    if twice:
        raise CheckpointError(
            f"{JSON} lists added tokens twice: {', '.join(twice)}",
            "every added token once",
            "remove the duplicates from the checkpoint's tokenizer.json",
        )
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / JSON)).get_vocab_size(with_added_tokens=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / JSON
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or decoder, one or a sequence of them."""
    if not isinstance(value, dict):
        return []
    return value[key] if value.get("type") == "Sequence" else [value]
