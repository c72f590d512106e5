"""The loops that our GPTQ is timed beside solve the same problem."""

from __future__ import annotations

import pytest
import torch

from calibrate.statistics.moments import output_error
from export.quantisation.grids import GRIDS
from parity_tests.laboratory.gptq_speed import blocked_loop, drawn_layer, main, ours, plain_loop


def test_both_loops_agree_and_ours_is_no_worse() -> None:
    layer = drawn_layer(48, 256, GRIDS["ort_int4_b32"])
    plain, blocked = plain_loop(layer), blocked_loop(layer)
    # A group's parameters are fitted where its first column is reached; inside a block of 128 the published loop has not
    # yet corrected the columns behind it, so only the first block's first group must be the same.
    assert torch.equal(plain[:, :32], blocked[:, :32])
    rounded = output_error(layer.change(layer.grid.quantise(layer.weight)), layer.moment).sum()
    errors = [
        float(output_error(solved - layer.weight, layer.moment).sum() / rounded) for solved in (ours(layer), plain, blocked)
    ]
    assert errors[0] < min(errors[1:]) < 1


def test_command_prints_the_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "64", "--columns", "128", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "128 -> 64" in printed
    assert printed.count("times ours") == 2
