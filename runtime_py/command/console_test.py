"""What reaches a terminal or a pipe of any encoding."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.command import console

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 图 and 😀\tand\nlines", "plain text, 图 and 😀\tand\nlines"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("over\rwritten\x08", "over\\x0dwritten\\x08"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("name\udcff", "name\\xff"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_escaped(text: str, shown: str) -> None:
    assert console.escaped(text) == shown


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=20), st.floats(allow_nan=False), st.integers())))
def test_json_reads_back_in_any_encoding(value: dict[str, object]) -> None:
    for encoding in ("utf-8", "ascii", "cp1252", "gbk"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        text = console.json_text(value, stream)
        text.encode(encoding)
        assert json.loads(text) == value
        assert not any(order in text for order in "\x1b\x9b\x7f\u202e")


SHOWING = """
import sys
from runtime_py.command import console
console.prepare()
console.out("图 é 😀")
console.out_json({"text": "图 é 😀"}, indent=None)
console.say("said 图")
print(repr(console.decoded(sys.stdin.readline(), sys.stdin)))
"""


@pytest.mark.parametrize(
    ("encoding", "text"), [("ascii", "\\u56fe \\xe9 \\U0001f600"), ("cp1252", "\\u56fe é \\U0001f600"), ("utf-8", "图 é 😀")]
)
def test_no_console_encoding_ends_a_program(encoding: str, text: str) -> None:
    import os

    done = subprocess.run(
        [sys.executable, "-c", SHOWING], input="图\n".encode(), capture_output=True, cwd=ROOT, check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )  # fmt: skip
    lines = done.stdout.decode(encoding).splitlines()
    assert lines[0] == text
    assert json.loads(lines[1]) == {"text": "图 é 😀"}
    assert done.stderr.decode(encoding).startswith("said ")
