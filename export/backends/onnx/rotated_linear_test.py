"""A layer of turned rows: near its matrix, rows apart from each other, right on a processor that adds in sixteen bits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.backends.onnx.record import ROTATED_GRID, TOKEN_GRID
from export.backends.onnx.rotated_linear import RotatedRowLinear
from export.quantisation.codes import Codes
from export.quantisation.grids import GRIDS
from export.quantisation.hadamard import turned

EMULATOR = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
RUN = "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]); " + (
    "numpy.save(sys.argv[3], s.run(None, {s.get_inputs()[0].name: numpy.load(sys.argv[2])})[0])"
)


def written(path: Path, codes: Codes, bias: bool, rows: torch.Tensor) -> onnxruntime.InferenceSession:
    """A graph of one layer for rows of any number."""
    layer = RotatedRowLinear(rows.shape[-1], codes.codes.shape[0], bias)
    layer.weight_codes.data = (codes.codes.to(torch.int16) - 128).to(torch.int8)
    layer.weight_scales.data = codes.scales[:, 0]
    if layer.bias is not None:
        layer.bias.data = torch.linspace(-1, 1, codes.codes.shape[0])
    axes = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    torch.onnx.export(
        layer.eval(), (rows,), str(path), dynamic_shapes=axes, dynamo=True, opset_version=23, optimize=False, verbose=False
    )
    return onnxruntime.InferenceSession(str(path))


@pytest.mark.parametrize("columns", [64, 576, 48, 13])
def test_rows_are_rounded_apart_and_one_value_takes_few_bits_of_the_others(tmp_path: Path, columns: int) -> None:
    """A row a thousand times as large takes nobody's bits, one of zeros stays what it is, and company changes no bit."""
    grid, drawn = GRIDS[ROTATED_GRID], torch.Generator().manual_seed(2)
    codes = grid.quantise(torch.randn(48, columns, generator=drawn))
    rows = torch.randn(2, 5, columns, generator=drawn)
    rows[0, 1] *= 1000
    rows[0, 2, 5] = 30
    rows[1, 3] = 0
    session = written(tmp_path / "layer.onnx", codes, True, rows)
    name = session.get_inputs()[0].name
    (output,) = session.run(None, {name: rows.numpy()})
    bias = torch.linspace(-1, 1, 48)
    expected = (rows @ grid.dequantise(codes).T + bias).numpy()
    errors = np.linalg.norm(output - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert 1e-3 < np.delete(errors, (2, 8)).max() < 0.02
    # of a value that is thirty times the others a byte leaves the others two bits, and most of its own where it is shared
    assert errors[0, 2] < (0.02 if columns % 16 == 0 else 0.1)
    np.testing.assert_array_equal(output[1, 3], bias.numpy())
    for count in (1, 2, 4):
        np.testing.assert_array_equal(session.run(None, {name: rows[:1, :count].numpy()})[0], output[:1, :count])


@pytest.mark.skipif(
    not EMULATOR or sys.platform != "linux", reason="no emulator of an x86 processor without VNNI (qemu-user)"
)
@pytest.mark.parametrize(("grid", "most"), [(ROTATED_GRID, 1e-6), (TOKEN_GRID, None)])
def test_a_processor_without_vnni_computes_it_too(tmp_path: Path, grid: str, most: float | None) -> None:
    """The largest sums there are: every input at its end, on the side of a row's code. Codes of another grid overflow."""
    matrix = torch.randn(64, 576, generator=torch.Generator().manual_seed(5))
    codes = GRIDS[grid].quantise(matrix if grid == ROTATED_GRID else turned(matrix))
    ends = torch.sign(codes.codes.float() - 128)[:40]
    expected = (ends @ ((codes.codes.float() - 128) * codes.scales).T)[None].numpy()
    path, given, made = tmp_path / "layer.onnx", tmp_path / "rows.npy", tmp_path / "made.npy"
    written(path, codes, False, turned(ends)[None])
    np.save(given, turned(ends)[None].numpy())
    program = [str(EMULATOR), "-cpu", "Haswell", sys.executable, "-c", RUN, str(path), str(given), str(made)]
    subprocess.run(program, check=True, capture_output=True, timeout=120)
    error = np.abs(np.load(made) - expected).max() / np.abs(expected).max()
    assert error > 1e-3 if most is None else error < most
