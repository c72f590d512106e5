"""The comparison beside other libraries, run with the one that is always here."""

from __future__ import annotations

import pytest

from calibrate.statistics.moments import output_error
from parity_tests.laboratory.calibration_libraries import command
from parity_tests.laboratory.calibration_libraries.problem import captured
from runtime_py.errors import ExitCode


def test_captured_rows_are_the_moments_rows() -> None:
    (layer,) = captured("minicpm-v", "demo", 32, 3, 0, ["layers.1.mlp.down"])
    assert layer.ours.name == "decoder.layers.1.mlp.down"
    assert len(layer.inputs) == 3
    rows = layer.rows()
    assert layer.ours.moment is not None
    change = layer.ours.change(layer.ours.grid.quantise(layer.weight))
    direct = (rows @ change.T).square().sum()
    assert float(output_error(change, layer.ours.moment).sum()) == pytest.approx(float(direct), rel=1e-4)


def test_table_compared_with_onnxruntime(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["onnxruntime", "--model", "minicpm-v", "--samples", "3", "--layers", "layers.1.attention.out"]
    assert command.main(arguments) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("onnxruntime ")
    titles, cells = ([cell.strip() for cell in line.strip("|").split("|")][1:] for line in (lines[2], lines[-2]))
    errors = {title: float(cell.split()[0]) for title, cell in zip(titles, cells, strict=True)}
    assert errors["ORT default"] == pytest.approx(errors["rounding"], rel=0.05)
    assert errors["our gptq"] < min(errors["ORT default"], errors["ORT HQQ"], errors["ORT k-quant"])


def test_a_library_that_is_missing_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from parity_tests.laboratory.calibration_libraries import gptqmodel_gptq

    monkeypatch.setattr(gptqmodel_gptq, "DISTRIBUTION", "no-such-distribution")
    assert command.main(["gptqmodel", "--model", "minicpm-v"]) == ExitCode.ENVIRONMENT
    message = capsys.readouterr().err
    assert "no-such-distribution is not installed" in message
    assert "pip install" in message
