"""Strangers' JSON: what is refused, with which words, and how fast."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.errors import PackageError
from runtime_py.files.json_file import (
    MAX_CONTAINERS,
    MAX_QUOTES,
    MEGABYTE,
    deeper_than,
    parse_json,
    read_json,
    shortened,
)

REFUSED = [
    (b'{"a": 1, "a": 2}', "given twice"),
    (b'{"a": {"c": 1, "b": 1, "b": 1}}', "the key 'b' is given twice"),
    (b"[" + b"{}," * MAX_CONTAINERS + b"0]", "holds 600,001 lists and objects"),
    (b'["' + b'","' * (MAX_QUOTES // 2) + b'"]', "holds 1,600,002 quotation marks"),
    (b'{"a": Infinity}', "Infinity is no number"),
    (b'{"a": NaN}', "NaN is no number"),
    (b'{"a": 1e999}', "infinite"),
    (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
    (b'{"a": 0.' + b"9" * 5000 + b"}", "digits"),
    (b"[" * 100_000, "too deeply"),
    (b"[" * 65 + b"]" * 65, "too deeply"),
    (b'{"a": "\xff"}', "not JSON"),
    (b'{"a": "\\ud800"}', "half a character"),
    (b'{"\\udfff": 1}', "half a character"),
    (b"", "not JSON"),
    (b"\x00", "not JSON"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED, ids=lambda value: str(value)[:20])
def test_what_is_no_plain_json_is_refused_at_once(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(PackageError, match=words) as caught:
        read_json(path, 8 * MEGABYTE)
    assert time.perf_counter() - began < 1
    assert "m.json" in caught.value.what


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for for ever."""
    os.mkfifo(tmp_path / "pipe.json")
    for name, words in (("pipe.json", "is no file"), ("none.json", "cannot be read"), ("", "cannot be read|is no file")):
        with pytest.raises(PackageError, match=words):
            read_json(tmp_path / name, MEGABYTE)
    (tmp_path / "large.json").write_bytes(b" " * 2000 + b"1")
    with pytest.raises(PackageError, match="has 2,001 bytes"):
        read_json(tmp_path / "large.json", 2000)


def test_files_of_other_libraries_are_read_as_they_read_them() -> None:
    """The last value of a key counts, and numbers need not be finite, where strictness is not asked for."""
    content = b'{"a": 1, "a": 2, "b": 1e999, "c": -Infinity}'
    assert parse_json(content, Path("m.json"), strict=False) == {"a": 2, "b": float("inf"), "c": float("-inf")}


def test_two_halves_are_a_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', Path("m.json")) == "\U0001f600"


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "m.json", MEGABYTE) == {}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_whatever_is_json_is_read_as_the_library_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode(), Path("m.json")) == json.loads(text)


def test_depth_counts_objects_and_lists() -> None:
    assert not deeper_than({"a": [1]}, 2)
    assert deeper_than({"a": [1]}, 1)
    assert not deeper_than(1, 0)


def test_long_values_are_shortened() -> None:
    assert shortened("x") == "'x'"
    assert shortened(list(range(8))) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert shortened(list(range(9))) == "a list of 9" and shortened([[0] * 9]) == "a list of 1"
    assert shortened("x" * 10**7) == "'" + "x" * 56 + "..."
