"""The product of one row on arm64, by dot-product instructions, run under qemu: the numbers of the x86 kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.backends.mlc.passes.row_product_test import ARM64, Kernel, product, scheduled, spread
from parity_tests.laboratory.arm64_program import Arm64Program, missing

pytestmark = pytest.mark.skipif(missing(), reason="needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static")


@pytest.mark.parametrize(
    ("dtype", "rows", "columns"), [("float32", 48, 2304), ("float16", 48, 2304), ("float16", 7, 192), ("float32", 5, 96)]
)
def test_the_sums_are_those_of_the_x86_kernel(tmp_path: Path, rows: int, columns: int, dtype: str) -> None:
    """Both add up the same integers; what differs is the order in which groups are added."""
    program = Arm64Program(tmp_path, scheduled(product(rows, columns, dtype), ARM64), ARM64)
    assert "sdot" in program.listing and "udot" in program.listing
    kernel, x = Kernel(rows, columns, dtype), spread(columns, dtype)
    residual = np.zeros((1, 1, rows), np.float32)
    got = program([x.reshape(1, 1, -1), kernel.matrix.words, kernel.matrix.scales, residual, residual])[-1][0, 0]
    size = np.abs(kernel.matrix.stands_for) @ np.abs(x.astype(np.float64))
    assert (np.abs(got - kernel(x)) / size).max() < 5e-7
