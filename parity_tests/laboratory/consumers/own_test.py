"""Another interpreter that fails: which of its words are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.laboratory.consumers.own import elsewhere


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo Traceback >&2; echo '  a line' >&2; echo 'ModuleNotFoundError: No module named numpy' >&2; exit 1",
         "ModuleNotFoundError: No module named numpy"),
        ("exit 9", "exit code 9"),
    ],
)  # fmt: skip
def test_the_last_line_is_told_whole(program: str, said: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError) as failed:
        elsewhere(python, tmp_path, tmp_path / "picture.png")
    assert str(failed.value) == said
