"""What ``calibrate compare`` takes where no weights are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.command.compare_cli import parser, request_of
from runtime_py.errors import UsageError


@pytest.mark.parametrize(
    ("model", "given", "weights"),
    [
        ("minicpm-v", (), "demo"),
        ("MiniCPM-V", (), "demo"),
        ("openbmb/MiniCPM-V", (), None),
        ("someone/fine-tuned", (), None),
        ("minicpm-v", ("--weights", "there"), "there"),
        ("someone/fine-tuned", ("--weights", "there"), "there"),
    ],
)
def test_an_alias_is_its_demo_and_a_hub_id_is_itself(model: str, given: tuple[str, ...], weights: str | None):
    assert request_of(parser("compare").parse_args(["--model", model, *given])).base.weights == weights


def test_a_folder_is_itself_and_nothing_is_no_model(tmp_path: Path):
    assert request_of(parser("compare").parse_args(["--model", str(tmp_path)])).base.weights is None
    with pytest.raises(UsageError):
        request_of(parser("compare").parse_args(["--model", "no-such-model"]))
