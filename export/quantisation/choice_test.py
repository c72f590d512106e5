"""Files that are called a choice of bits and hold none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from export.__main__ import main
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


def written(folder: Path, **more: object) -> Path:
    path = folder / "choice.json"
    choice = {"kind": "bit choice", "schema": 1, "backends": {"onnx": {"vision_encoder.blocks.1.attention.qkv": "int8_14"}}}
    path.write_text(json.dumps({**choice, **more}))
    return path


def planned(model: str, target: str, choice: Path) -> int:
    return main(["--model", model, "--weights", "demo", "--target", target, "--choice", str(choice), "--dry-run"])


def test_a_choice_for_another_target_is_refused_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned("minicpm-v", "android", written(tmp_path, target="cpu")) == 2
    error = capsys.readouterr().err
    assert "chooses for the backend onnx (target 'cpu')" in error and "a choice for mlc" in error


@pytest.mark.parametrize(("model", "told"), [("minicpm-v", False), ("cogvlm2", True)])
def test_a_choice_that_was_measured_on_another_model_is_told_of(
    model: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned(model, "cpu", written(tmp_path, source="demo/minicpm-v")) == 0
    assert ("measured on 'demo/minicpm-v', not on demo/cogvlm2" in capsys.readouterr().out) is told


def test_a_choice_of_another_version_is_told_from_another_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found kind 'bit choice', schema 2") as refusal:
        read_choice(written(tmp_path, schema=2))
    assert refusal.value.next_step == "search again with this version"
