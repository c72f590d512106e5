"""The product with a matrix of MatMulNBits on arm64, by dot-product instructions, run under qemu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tvm.target import Target

from export.processor.block_panels import MANY
from export.processor.block_product import BlockMatrix
from export.processor.block_product_test import difference, drawn, rounded, spread, written
from export.processor.targets import TARGETS
from parity_tests.laboratory.arm64_program import Arm64Program, missing

pytestmark = pytest.mark.skipif(missing(), reason="needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static")


@pytest.mark.parametrize(
    "matrix",
    [
        BlockMatrix(35, 2304, 32, 4),
        BlockMatrix(7, 576, 64, 4),
        BlockMatrix(3, 96, 32, 4),
        BlockMatrix(7, 576, 32, 8),
        BlockMatrix(5, 896, 128, 8),
        BlockMatrix(64, 992, 32, 4),
        BlockMatrix(32, 592, 16, 8),
    ],
    ids=str,
)
def test_products_are_those_of_numpy(tmp_path: Path, matrix: BlockMatrix) -> None:
    target = Target(TARGETS["aarch64"])
    program, given = Arm64Program(tmp_path, written(matrix, "aarch64", "matmul"), target), drawn(matrix)
    assert "sdot" in program.listing
    x, made = spread(MANY + 1, matrix.columns, matrix.block), dict[int, np.ndarray]()
    for rows in (1, 5, 17, MANY + 1):
        *_, made[rows] = program([x[:rows], given.codes, given.scales, np.zeros((rows, matrix.rows), np.float32)])
        assert difference(made[rows], rounded(x[:rows], matrix.block) @ given.stands_for.T) < 1e-6
    assert all(np.array_equal(got, made[MANY + 1][:rows]) for rows, got in made.items())
