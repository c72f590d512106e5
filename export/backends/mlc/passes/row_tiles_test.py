"""The device schedule of a matrix times a vector: what its loops compute, and what its blocks of threads ask for."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import te, tirx
from tvm.target import Target

from export.backends.mlc.blocks.linear import dequantised
from export.backends.mlc.library import SCHEDULES, TARGETS
from export.backends.mlc.passes.row_product_test import product
from export.backends.mlc.passes.row_tiles import RowTiles
from parity_tests.laboratory.mlc_traffic.launches import LaunchReader
from parity_tests.laboratory.mlc_traffic.traffic import traffic

ANDROID = Target(TARGETS["android"])


def int4_product(rows: int, columns: int, tokens: int | tirx.Var = 1) -> tirx.PrimFunc:
    """0.5 (x W^T) + residual in float16, as a decoder's output projection is after fusion."""
    x, residual = (te.placeholder((1, tokens, size), "float16", name=n) for n, size in (("x", columns), ("r", rows)))
    words = te.placeholder((rows, columns // 8), "uint32", name="words")
    scales = te.placeholder((rows, columns // 32), "float16", name="scales")
    matrix = te.compute((rows, columns), lambda n, k: dequantised(words, scales, n, k, "float16"), name="dequantise")
    k = te.reduce_axis((0, columns), name="k")
    product = te.compute(
        (1, tokens, rows),
        lambda b, t, n: te.sum(x[b, t, k].astype("float32") * matrix[n, k].astype("float32"), axis=k),
        name="matmul",
    )
    finish = te.compute(product.shape, lambda b, t, n: product[b, t, n].astype("float16"), name="finish")
    total = te.compute(
        product.shape, lambda b, t, n: finish[b, t, n] * tirx.const(0.5, "float16") + residual[b, t, n], name="total"
    )
    return te.create_prim_func([x, words, scales, residual, total])


def serial(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same loops with none bound to a thread."""
    bound = r'T\.thread_binding\(([^,]+), thread="[^"]+"(?:, annotations=\{[^}]*\})?\)'
    text = re.sub(bound, r"range(\1)", kernel.script(show_meta=False))
    return tvm.script.from_source(text)


@pytest.mark.parametrize(("rows", "columns"), [(2304, 2304), (2304, 5760), (122_753, 2304)])
def test_blocks_ask_for_little_more_than_the_matrix(rows: int, columns: int) -> None:
    schedule = RowTiles().apply(int4_product(rows, columns), ANDROID, False)
    assert schedule is not None
    (launch,) = LaunchReader(schedule.mod["main"], {}).launches
    moved = traffic(launch)
    least = columns * 2 + rows * (columns // 2 + columns // 16) + 2 * rows * 2
    assert sum(moved.read.values()) + sum(moved.written.values()) == least
    assert launch.threads == 64
    assert 1.0 < moved.asked / least < 1.15
    assert launch.flops == pytest.approx(3 * rows * columns, rel=0.02)  # (code x scale) x value, added


def test_a_product_of_many_rows_is_left_to_the_next_rule() -> None:
    assert RowTiles().apply(int4_product(64, 256, tokens=7), ANDROID, False) is None
    assert RowTiles().apply(int4_product(64, 32 * 5), ANDROID, False) is not None


@pytest.mark.parametrize(("dtype", "name"), [("float16", "half"), ("float32", "float")])
def test_metal_loads_four_elements_at_once(dtype: str, name: str) -> None:
    """It has no wider vectors, and TVM's code generator refuses them."""
    schedule = RowTiles().apply(product(64, 256, dtype), Target(SCHEDULES["ios"]), False)
    assert schedule is not None
    library = tvm.compile(schedule.mod["main"].with_attr("global_symbol", "main"), target=Target(TARGETS["ios"]))
    assert [f"{name}4" in module.inspect_source() for module in library.mod.imports] == [True]


@pytest.mark.parametrize(("rows", "columns"), [(70, 256), (64, 160), (96, 32)])
def test_the_loops_compute_the_product(rows: int, columns: int) -> None:
    """Run on this machine, the threads one after another: a sum over threads becomes a loop."""
    schedule = RowTiles().apply(int4_product(rows, columns), ANDROID, False)
    assert schedule is not None
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal((1, 1, columns)).astype(np.float16)
    codes = drawn.integers(0, 15, (rows, columns)).astype(np.uint32)
    scales = drawn.uniform(0.01, 0.02, (rows, columns // 32)).astype(np.float16)
    residual = drawn.standard_normal((1, 1, rows)).astype(np.float16)
    words = (codes.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32)
    matrix = ((codes.astype(np.float16) - np.float16(7)) * np.repeat(scales, 32, axis=1)).astype(np.float32)
    expected = np.float16(0.5) * (matrix @ x[0, 0].astype(np.float32)).astype(np.float16) + residual[0, 0]
    got = tvm.runtime.tensor(np.zeros((1, 1, rows), np.float16))
    built = tvm.compile(serial(schedule.mod["main"]), target=Target(TARGETS["x86_64"]))
    built(*(tvm.runtime.tensor(array) for array in (x, words, scales, residual)), got)
    assert np.abs(got.numpy()[0, 0].astype(np.float32) - expected.astype(np.float32)).max() < 4e-3
