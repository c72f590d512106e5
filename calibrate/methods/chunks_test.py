"""Chunks of a layer: even in number and length, and the same codes whatever the threads that solve them."""

from pathlib import Path

import pytest
import torch

from calibrate import blockwise
from calibrate.methods import chunks
from calibrate.methods.chunks import CHUNK_ELEMENTS, LEAST_ELEMENTS, busy_threads, chunk_rows
from calibrate.methods.gptq import Gptq
from calibrate.run import plan
from calibrate.run_test import request
from export.package.journal import Journal


@pytest.mark.parametrize(("rows", "columns"), [(2304, 2304), (6912, 2304), (11520, 2304), (2304, 5760), (122753, 2304)])
def test_chunks_of_a_layer_are_even_in_number_and_length(rows: int, columns: int) -> None:
    step = chunk_rows(rows, columns)
    lengths = [min(step, rows - start) for start in range(0, rows, step)]
    assert sum(lengths) == rows and len(lengths) % 2 == 0
    assert max(lengths) - min(lengths) <= len(lengths)
    assert step * columns <= CHUNK_ELEMENTS + columns
    assert busy_threads(rows, columns, 64) == len(lengths)
    assert chunk_rows(48, 64) == 48
    assert [busy_threads(48, 64, 8), busy_threads(LEAST_ELEMENTS, 1, 8), busy_threads(122753, 2304, 8)] == [1, 2, 8]


def test_the_number_of_threads_changes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity_tests.laboratory.calibration_libraries.problem import captured

    monkeypatch.setattr(chunks, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 128 * 100)
    (layer,) = captured("minicpm-v", "demo", 32, 3, 0, ["layers.1.attention.qkv"])
    planned = plan(request(tmp_path / "codes", precision="int4"))
    spec, weights = planned.checkpoint.spec, planned.checkpoint.weights
    assert weights is not None
    assert layer.ours.moment is not None
    assert chunk_rows(*weights.shape(f"{layer.ours.name}.weight")) < weights.shape(f"{layer.ours.name}.weight")[0]
    journal = Journal(tmp_path, {})
    work = blockwise.BlockwiseCalibration(spec, weights, planned.assignments["onnx"], Gptq(), True, journal, "onnx")
    before, solved = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            layer.ours.moment.forget()
            solved.append(work._solve(layer.ours.name, weights, layer.ours.moment))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(solved[0].codes.codes, solved[1].codes.codes)
    assert torch.equal(solved[0].codes.scales, solved[1].codes.scales)
    assert solved[0].error == solved[1].error
