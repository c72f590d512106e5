"""JSON files from strangers: bounded in bytes and depth before they are parsed, every key once, every number finite."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime_py.errors import EdgeproofError, PackageError

MEGABYTE = 1 << 20
MAX_DEPTH = 64
"""Objects and lists inside one another; published files have fewer than ten."""

MAX_CONTAINERS = 600_000
"""Brackets of one file: an empty list takes three bytes of text and 64 of memory. Published files have a tenth of this."""

MAX_QUOTES = 1_600_000
"""Each text takes 50 bytes beside its letters. The largest published index of weights has 370,000."""

MAX_DIGITS = 400
"""Digits of one number: more than any float has, fewer than make arithmetic slow."""

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that is half a character unless its other half follows; Python's parser lets a single one through."""

LFS_POINTER = b"version https://git-lfs"
"""What stands in place of a file that Git LFS has not fetched (git-lfs/git-lfs, docs/spec.md)."""

FETCH = "run git lfs pull in its folder, or download the file itself"

Refusal = Callable[[str, str, str], EdgeproofError]
"""Makes the error to raise of its three parts; an error class is one."""


def read_json(path: Path, max_bytes: int, refusal: Refusal = PackageError, again: str = "copy the file again") -> Any:
    """The value of a JSON file in UTF-8, with or without a byte order mark.

    Args:
        max_bytes: more are not read. Parsed values take up to 16 times the memory of the text.
        refusal: makes the error of what failed, what was expected, and ``again``.

    Raises:
        EdgeproofError: whatever ``refusal`` makes: the file is missing, no regular file, too large, no JSON, nested too
            deeply, or it gives a key twice or a number that is not finite.
    """
    return parse_json(read_bytes(path, max_bytes, refusal, again), path, refusal, again)


def read_bytes(path: Path, max_bytes: int, refusal: Refusal = PackageError, again: str = "copy the file again") -> bytes:
    """The content of a regular file of at most ``max_bytes``; a pipe or device is refused, not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as stream:  # noqa: PTH123  (an open descriptor, so that no other file is read than was looked at)
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refusal(f"{path} is no file", "a regular file", again)
            if status.st_size > max_bytes:
                raise refusal(f"{path} has {status.st_size:,} bytes", f"at most {max_bytes:,}", again)
            content = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise refusal(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", "a readable file", again
        ) from error
    if content.startswith(LFS_POINTER):
        raise refusal(f"{path} is a Git LFS pointer", "the file itself", FETCH)
    return content


def read_optional_json(
    path: Path, max_bytes: int, refusal: Refusal = PackageError, again: str = "copy the file again"
) -> Any:
    """As `read_json`; {} where nothing has this name. What is there and no file is refused, not taken for absent."""
    return read_json(path, max_bytes, refusal, again) if os.path.lexists(path) else {}


def parse_json(
    content: bytes,
    path: Path,
    refusal: Refusal = PackageError,
    again: str = "copy the file again",
    strict: bool = True,
    room: int = 1,
) -> Any:
    """The value of JSON text; see `read_json`.

    Args:
        strict: refuse numbers that are not finite and keys given twice; else they are what Python's json, and so
            transformers, makes of them: of a key the last value counts.
        room: how often the common limits of containers and quotation marks may be filled.
    """
    containers, quotes = content.count(b"[") + content.count(b"{"), content.count(b'"')
    if containers > room * MAX_CONTAINERS:
        raise refusal(f"{path} holds {containers:,} lists and objects", f"at most {room * MAX_CONTAINERS:,}", again)
    if quotes > room * MAX_QUOTES:
        raise refusal(f"{path} holds {quotes:,} quotation marks", f"at most {room * MAX_QUOTES:,}", again)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if strict and len(values) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {shortened(twice)} is given twice")
        return values

    def number(text: str) -> int | float:
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        value = float(text) if any(letter in text for letter in ".eE") else int(text)
        if strict and value in (float("inf"), float("-inf")):
            raise ValueError(f"the number {text} is infinite")
        return value

    def constant(text: str) -> float:
        if not strict:
            return float(text)
        raise ValueError(f"{text} is no number of JSON")

    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=unique,
            parse_int=number,
            parse_float=number,
            parse_constant=constant,
        )
    except RecursionError as error:
        raise _too_deep(path, refusal, again) from error
    except ValueError as error:
        raise refusal(f"{path} is not JSON: {error}", "JSON in UTF-8", again) from error
    if deeper_than(value, MAX_DEPTH):
        raise _too_deep(path, refusal, again)
    if SURROGATE.search(content) and not _encodable(value):
        raise refusal(f"{path} holds half a character", "text that is Unicode", again)
    return value


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(path: Path, refusal: Refusal, again: str) -> EdgeproofError:
    return refusal(f"{path} nests its JSON too deeply", f"at most {MAX_DEPTH} levels", again)


def deeper_than(value: Any, levels: int) -> bool:
    """Whether objects and lists nest deeper than ``levels``."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        level = [item for item in inner if isinstance(item, dict | list)]
    return bool(level)


def shortened(value: object, length: int = 60) -> str:
    """A value of a stranger's file for an error message: its `repr`, cut; of large containers their kind and size."""
    if isinstance(value, str | bytes):
        value = value[: 4 * length]
    elif isinstance(value, _CONTAINERS) and not _is_small(value):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except Exception:  # a number of thousands of digits, or nesting without end
        return f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."


_CONTAINERS = (dict, list, tuple, set, frozenset)


def _is_small(container: Any) -> bool:
    """Whether every part has at most 8 items and all of it 100, counted as often as they are shown."""
    left, parts = 100, [container]
    while parts:
        part = parts.pop()
        left -= len(part)
        if len(part) > 8 or left < 0:
            return False
        items = [*part, *part.values()] if isinstance(part, dict) else part
        parts += [item for item in items if isinstance(item, _CONTAINERS)]
    return True
