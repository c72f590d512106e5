"""What is kept of a call's rows: the pages that TVM's kernel leaves, bit by bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.relax.frontend.nn.llm._page_kernels import _kv_cache_transpose_append
from tvm.target import Target

from export.backends.mlc.library import TARGETS
from export.backends.mlc.processor_append import APPEND, AppendOnProcessor, append_kernel
from export.processor.online_softmax import PAGE

HEADS, SIZE, PAGES = 3, 24, 4
POSITIONS = np.array([0, PAGE - 1, -1, PAGE, PAGES * PAGE - 1], np.int32)
"""Of the rows: the first and the last of a page, none, and of another page."""


def appended(kernel: tirx.PrimFunc, rows: int) -> np.ndarray:
    numbers = np.random.default_rng(0)
    module = IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    pages = tvm.runtime.tensor(np.full((PAGES, 2, HEADS, PAGE, SIZE), 7, np.float16))
    k, v = (tvm.runtime.tensor(numbers.standard_normal((rows, HEADS, SIZE)).astype(np.float16)) for _ in "kv")
    tvm.compile(module, target=Target(TARGETS["x86_64"]))["kernel"](pages, k, v, tvm.runtime.tensor(POSITIONS[:rows]))
    return pages.numpy()


@pytest.mark.parametrize("rows", [1, len(POSITIONS)])
def test_pages_are_those_of_tvm_bit_by_bit(rows: int) -> None:
    kernels = append_kernel(HEADS, SIZE, "float16"), _kv_cache_transpose_append(HEADS, SIZE, "float16", PAGE)
    ours, theirs = (appended(kernel, rows) for kernel in kernels)
    np.testing.assert_array_equal(ours, theirs)
    assert (ours != 7).any(axis=-1).sum() == 2 * HEADS * (POSITIONS[:rows] >= 0).sum()


def test_a_kernel_that_tvm_calls_otherwise_is_refused() -> None:
    spec: Any = SimpleNamespace(kv_heads=HEADS, head_dim=SIZE)
    called = tirx.PrimFunc([tirx.Var(f"x{at}", "int32") for at in range(5)], tirx.Evaluate(0))
    with pytest.raises(AssertionError, match="expected kernels with so many arguments"):
        AppendOnProcessor(spec, "float16")(IRModule({APPEND: called}))
