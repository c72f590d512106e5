"""The device schedule of a product of many rows: what its loops compute, what its blocks ask for, and whom it is left to."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.target import Target

from export.backends.mlc.library import TARGETS
from export.backends.mlc.passes.row_tiles_test import ANDROID, int4_product, serial
from export.backends.mlc.passes.tall_tiles import TallTiles
from parity_tests.laboratory.mlc_traffic.launches import LaunchReader
from parity_tests.laboratory.mlc_traffic.traffic import traffic

PROMPT = tirx.Var("seq_len", "int32")


def test_a_weight_is_decoded_for_every_eighth_row_and_asked_for_by_every_32nd() -> None:
    asked, flops = {}, {}
    for name, rule in (("tall", TallTiles(True)), ("TVM's own", tvm.s_tir.dlight.gpu.Matmul())):
        with ANDROID:
            schedule = rule.apply(int4_product(2304, 2304, tokens=PROMPT), ANDROID, False)
        assert schedule is not None
        (launch,) = LaunchReader(schedule.mod["main"], {"seq_len": 512}).launches
        asked[name], flops[name] = traffic(launch).asked, launch.flops
        assert launch.threads == 128
    matrix, rows = 2304 * (2304 // 2 + 2304 // 16), 512 * 2304 * 2
    assert asked["tall"] == pytest.approx(512 / 32 * matrix + 2304 / 256 * rows + 2 * rows, rel=0.01)
    assert asked["TVM's own"] > 2.5 * asked["tall"]


@pytest.mark.parametrize(("tokens", "known"), [(5, False), (70, False), (256, True)])
def test_the_loops_compute_the_product_of_any_number_of_rows(tokens: int, known: bool) -> None:
    rows, columns = 300, 64
    with ANDROID:
        schedule = TallTiles(True).apply(int4_product(rows, columns, tokens if known else PROMPT), ANDROID, False)
    assert schedule is not None
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal((1, tokens, columns)).astype(np.float16)
    codes = drawn.integers(0, 15, (rows, columns)).astype(np.uint32)
    scales = drawn.uniform(0.01, 0.02, (rows, columns // 32)).astype(np.float16)
    residual = drawn.standard_normal((1, tokens, rows)).astype(np.float16)
    words = (codes.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32)
    matrix = ((codes.astype(np.float16) - np.float16(7)) * np.repeat(scales, 32, axis=1)).astype(np.float32)
    expected = np.float16(0.5) * (x[0].astype(np.float32) @ matrix.T).astype(np.float16) + residual[0]
    got = tvm.runtime.tensor(np.zeros((1, tokens, rows), np.float16))
    built = tvm.compile(serial(schedule.mod["main"]), target=Target(TARGETS["x86_64"]))
    built(*(tvm.runtime.tensor(array) for array in (x, words, scales, residual)), got)
    assert np.abs(got.numpy()[0].astype(np.float32) - expected.astype(np.float32)).max() < 4e-3


def test_few_rows_and_other_devices_are_left_to_the_next_rule() -> None:
    metal_limits = Target({"kind": "opencl", "host": TARGETS["ios"]["host"]})
    batch = tirx.Var("batch_size", "int32")
    for rule, target, tokens in (
        (TallTiles(True), ANDROID, 64),
        (TallTiles(True), ANDROID, batch),
        (TallTiles(False), ANDROID, PROMPT),
        (TallTiles(True), metal_limits, PROMPT),
    ):
        assert rule.apply(int4_product(256, 256, tokens=tokens), target, False) is None
