"""Bytes counted from loops, against what is counted by hand; and that no kernel of decode moves much more than it needs."""

from __future__ import annotations

import pytest
from tvm.script import tirx as T

from parity_tests.laboratory.mlc_traffic.__main__ import MOST, sizes, table
from parity_tests.laboratory.mlc_traffic.functions import function_traffic, kernel_traffic
from parity_tests.laboratory.mlc_traffic.launches import LaunchReader
from parity_tests.laboratory.mlc_traffic.libraries import request_of, scheduled_module, spec_of
from parity_tests.laboratory.mlc_traffic.traffic import traffic


@T.prim_func(s_tir=True)
def gathered_rows(a: T.handle, b: T.handle, c: T.handle):
    rows = T.int32()
    table_ = T.match_buffer(a, (1000, 8), "float16")
    ids = T.match_buffer(b, (rows,), "int32")
    out = T.match_buffer(c, (rows, 8), "float32")
    for block in T.thread_binding((rows * 8 + 15) // 16, "blockIdx.x"):
        for thread in T.thread_binding(16, "threadIdx.x"):
            with T.sblock("out"):
                row = T.axis.spatial(rows, (block * 16 + thread) // 8)
                column = T.axis.spatial(8, (block * 16 + thread) % 8)
                T.where(block * 16 + thread < rows * 8)
                out[row, column] = T.cast(table_[ids[row], column], "float32") * T.float32(2)


@T.prim_func(s_tir=True)
def twice_through_memory(a: T.handle, b: T.handle):
    given = T.match_buffer(a, (64,), "float32")
    result = T.match_buffer(b, (64,), "float32")
    kept = T.sblock_alloc_buffer((64,), "float32")
    for block in T.thread_binding(4, "blockIdx.x"):
        for thread in T.thread_binding(16, "threadIdx.x"):
            with T.sblock("kept"):
                v = T.axis.spatial(64, block * 16 + thread)
                kept[v] = given[v] + T.float32(1)
    for block in T.thread_binding(4, "blockIdx.x"):
        for thread in T.thread_binding(16, "threadIdx.x"):
            with T.sblock("result"):
                v = T.axis.spatial(64, block * 16 + thread)
                result[v] = kept[v] * kept[63 - v]


def test_rows_that_memory_names_are_counted_once_each_and_not_as_the_whole_table() -> None:
    (launch,) = LaunchReader(gathered_rows, {"rows": 5}).launches
    moved = traffic(launch)
    assert (launch.blocks, launch.threads, launch.flops) == (3, 16, 3 * 16)
    assert moved.read == {"table_": 5 * 8 * 2, "ids": 5 * 4}
    assert moved.written == {"out": 5 * 8 * 4}


def test_what_a_kernel_keeps_in_memory_for_itself_is_moved_but_not_needed() -> None:
    row = kernel_traffic("twice", twice_through_memory, 1, 0, {})
    assert row.launches == 2
    assert row.least == 2 * 64 * 4
    assert row.moved == row.least + 2 * 64 * 4
    assert row.ratio == pytest.approx(2.0)
    assert row.flops == 2 * 64


def test_no_kernel_of_decode_moves_much_more_than_it_needs() -> None:
    module = scheduled_module(request_of(spec_of("minicpm-v", "tiny", 1), "android"), "android")
    kernels = function_traffic(module, "decode", sizes(1, 64))
    assert {"tir_kv_cache_transpose_append", "batch_decode_paged_kv"} < {kernel.name for kernel in kernels}
    assert max(kernel.ratio for kernel in kernels) <= MOST, "\n".join(table("decode", kernels))
