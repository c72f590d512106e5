"""Schemas that would keep a server at work for minutes are told from those that people write."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_py.errors import MachineError
from runtime_py.serving import schema_process
from runtime_py.serving.schema_trial import can_be_worked_out

pytest.importorskip("llguidance")

ENDLESS = {"type": "integer", "multipleOf": 123456789}
"""llguidance 1.9 takes minutes and gigabytes over it."""

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 500}, "born": {"type": "string", "format": "date"}},
    "required": ["name"],
}


@pytest.fixture
def forgotten() -> Iterator[None]:
    can_be_worked_out.cache_clear()
    yield
    can_be_worked_out.cache_clear()


def test_a_schema_that_takes_minutes_is_told_in_seconds() -> None:
    assert not can_be_worked_out(json.dumps(ENDLESS))


@pytest.mark.parametrize(
    "schema", [PERSON, {"type": "nonsense"}, {"const": "\ud83d"}], ids=["a schema", "none", "half a pair"]
)
def test_what_is_soon_done_is_left_to_whoever_asked(schema: dict[str, Any]) -> None:
    assert can_be_worked_out(json.dumps(schema))


def test_a_schema_is_tried_once(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_be_worked_out(json.dumps(PERSON))
    monkeypatch.setattr(subprocess, "run", None)
    assert can_be_worked_out(json.dumps(PERSON))


def test_a_process_that_does_not_end_is_not_waited_for(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_py.serving.schema_trial.WALL_SECONDS", 0.01)
    assert not can_be_worked_out(json.dumps(PERSON))


@pytest.mark.parametrize("program", ["/nowhere/python", "/bin/false"])
def test_a_server_that_cannot_try_says_so(forgotten: None, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(MachineError, match="cannot be started"):
        can_be_worked_out(json.dumps(PERSON))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no address space")
def test_memory_is_bounded() -> None:
    program = "import schema_process; schema_process.bound(); bytearray({})"
    folder = Path(schema_process.__file__).parent

    def ends(size: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program.format(size)], cwd=folder, capture_output=True, text=True, check=False
        )
        return done.stderr.strip()

    assert ends(schema_process.FURTHER_BYTES // 2) == ""
    assert ends(schema_process.FURTHER_BYTES).endswith("MemoryError")
