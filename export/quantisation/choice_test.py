"""Files that are called a choice of bits and hold none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.quantisation.choice import read_choice
from runtime_py.errors import UsageError

HEAD = b'{"kind": "bit choice", "schema": 1'


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"5",
        HEAD + b"}",
        HEAD + b', "backends": 5}',
        HEAD + b', "backends": {"onnx": ["int8"]}}',
        HEAD + b', "backends": {"onnx": {"decoder.layers.0.mlp.down": 8}}}',
    ],
)
def test_another_content_is_one_error_with_the_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "choice.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"choice\.json"):
        read_choice(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "choice.json")
    with pytest.raises(UsageError, match="is no file"):
        read_choice(tmp_path / "choice.json")
