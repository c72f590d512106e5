"""The JSON files of a checkpoint folder, read as what they are: files that people edit, cut, and download by halves."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import LFS_POINTER

MOST_BYTES = 16 << 20
"""A settings file of more bytes is none; the largest published ones hold some kilobytes."""

MOST_LEVELS = 64
"""Objects and lists inside one another; published files have four."""

AGAIN = "download the file again"


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark.

    Raises:
        CheckpointError: the file cannot be read, is a Git LFS pointer, too large, no UTF-8, no JSON, nested too deeply, or
            holds something else than an object.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= most_bytes else b""
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}", "a file that may be read", "check its permissions"
        ) from error
    if size > most_bytes:
        raise CheckpointError(f"{path} has {size} bytes", f"at most {most_bytes} of settings", AGAIN)
    if content.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself",
            "a JSON object",
            "run git lfs pull in the checkpoint's folder",
        )
    return _object(path, content)


def read_optional(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """As `read_object`; {} where there is no such file."""
    return read_object(path, most_bytes) if path.is_file() else {}


def _object(path: Path, content: bytes) -> dict[str, Any]:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CheckpointError(f"{path} is UTF-16 text", "JSON in UTF-8", "save it as UTF-8")
    if not content.strip():
        raise CheckpointError(f"{path} is empty", "a JSON object", AGAIN)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise _too_deep(path) from error
    except ValueError as error:  # no UTF-8, no JSON, or an integer of thousands of digits
        raise CheckpointError(f"{path} is not JSON: {error}", "a JSON object", AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object but a {type(value).__name__}", "a JSON object", AGAIN)
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        level = [item for outer in level for item in _items(outer)]
    if level:
        raise _too_deep(path)
    return value


def _items(value: Any) -> list[Any]:
    """The objects and lists directly inside one."""
    inner = value.values() if isinstance(value, dict) else value
    return [item for item in inner if isinstance(item, dict | list)]


def _too_deep(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} nests its JSON too deeply", f"a JSON object of at most {MOST_LEVELS} levels", AGAIN)
