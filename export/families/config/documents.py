"""The JSON files of a checkpoint folder, read as what they are: files that people edit, cut, and download by halves."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, parse_json, read_bytes

MOST_BYTES = 16 * MEGABYTE
"""A settings file of more bytes is none; the largest published ones hold some kilobytes."""

AGAIN = "correct the file, or download it again"


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark, as transformers reads it: numbers may be infinite or
    none, and of a key given twice the last value counts.

    Raises:
        CheckpointError: the file cannot be read, is no regular one, a Git LFS pointer, too large, no UTF-8, no JSON, nested
            too deeply, or holds something else than an object.
    """
    content = read_bytes(path, most_bytes, CheckpointError, AGAIN)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CheckpointError(f"{path} is UTF-16 text", "JSON in UTF-8", "save it as UTF-8")
    if not content.strip():
        raise CheckpointError(f"{path} is empty", "a JSON object", AGAIN)
    value = parse_json(content, path, CheckpointError, AGAIN, strict=False, room=min(max(1, most_bytes // MOST_BYTES), 4))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object but a {type(value).__name__}", "a JSON object", AGAIN)
    return value


def read_optional(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """As `read_object`; {} where nothing has this name. What is there and no file is refused, not taken for absent."""
    return read_object(path, most_bytes) if os.path.lexists(path) else {}
