"""Settings files as people and networks leave them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.families.config.documents import MOST_BYTES, read_object, read_optional
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MAX_DEPTH

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "config.json") == {"a": 1}


def test_of_a_key_given_twice_the_last_value_counts(tmp_path: Path) -> None:
    """As for Python's json, and so for transformers: published files that were edited by hand have such keys."""
    (tmp_path / "config.json").write_bytes(b'{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}')
    assert read_object(tmp_path / "config.json") == {"a": 3, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (POINTER, "Git LFS pointer"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"a": 1', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b"[1]", "no JSON object but a list"),
        (b"[" * 10_000 + b"]" * 10_000, "too deeply"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "too deeply"),
        (b'{"a": [' + b"[]," * 700_000 + b"0]}", "700,002 lists and objects"),
        (b'{"a": "\\ud800"}', "half a character"),
    ],
)
def test_anything_else_is_one_error_that_names_the_file(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as raised:
        read_object(tmp_path / "config.json")
    assert "config.json" in raised.value.what
    assert raised.value.exit_code == 2


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(CheckpointError, match="at most"):
        read_object(tmp_path / "config.json")


def test_a_missing_file_is_empty_only_where_it_is_optional(tmp_path: Path) -> None:
    assert read_optional(tmp_path / "config.json") == {}
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_object(tmp_path / "config.json")


def test_what_has_the_name_of_a_file_and_is_none_is_not_taken_for_absent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name, leads_to in (("loop.json", "loop.json"), ("gone.json", "nowhere"), ("device.json", "/dev/zero")):
        (tmp_path / name).symlink_to(leads_to)
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=path.name):
            read_optional(path)


def test_a_number_that_is_none_is_left_to_who_reads_its_key(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": NaN, "b": 1e999, "c": -Infinity}')
    assert str(read_object(tmp_path / "config.json")) == "{'a': nan, 'b': inf, 'c': -inf}"
