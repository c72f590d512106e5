"""The device schedule of a product of many rows, run on PoCL as the Android library's kernels are (rung 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.target import Target

from export.backends.mlc.library import TARGETS
from export.backends.mlc.passes.row_product_test import drawn, product
from export.backends.mlc.passes.row_tiles_test import ANDROID
from export.backends.mlc.passes.tall_tiles import TallTiles
from parity_tests.laboratory.mlc_ladder import environment
from parity_tests.laboratory.mlc_ladder.results import CannotRun

OPTIONS = {"tirx.disable_cse_tir": True, "tirx.disable_assert": True}
"""As the library of the PoCL rung is compiled."""


@pytest.mark.parametrize(("tokens", "known"), [(5, False), (70, False), (256, True)])
def test_the_kernel_computes_the_product_of_any_number_of_rows(tmp_path: Path, tokens: int, known: bool) -> None:
    try:
        environment.need_pocl()
    except CannotRun as reason:
        pytest.skip(str(reason))
    from parity_tests.laboratory.mlc_ladder.pocl import install_kernels

    rows, columns, target = 300, 64, Target(TARGETS["pocl"])
    function = product(rows, columns, "float32", tokens if known else tirx.Var("seq_len", "int32"))
    with ANDROID:
        schedule = TallTiles(True).apply(function, ANDROID, False)
    assert schedule is not None
    name = f"tall_{tokens}"
    kernel = schedule.mod["main"].with_attr("global_symbol", name).with_attr("tirx.is_scheduled", True)
    with tvm.transform.PassContext(config=OPTIONS):
        tvm.compile(tvm.ir.IRModule({name: kernel}), target=target).export_library(str(tmp_path / "kernel.so"))
    device = install_kernels()
    library = tvm.runtime.load_module(str(tmp_path / "kernel.so"))
    matrix, numbers = drawn(rows, columns, "float32"), np.random.default_rng(0)
    x, residual = (numbers.standard_normal((1, tokens, size)).astype(np.float32) for size in (columns, rows))
    out = tvm.runtime.tensor(np.zeros((1, tokens, rows), np.float32))
    library[name](*(tvm.runtime.tensor(array) for array in (x, matrix.words, matrix.scales, residual)), out)
    assert device.launched
    expected = x[0] @ matrix.stands_for.T + residual[0]
    assert np.abs(out.numpy()[0] - expected).max() / np.abs(expected).max() < 2e-6
