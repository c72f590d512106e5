"""Norms of rows: float64's numbers in vectors, rows over the cores, and kernels of another form as they were."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.target import Target

from export.backends.mlc.blocks.norms import LayerNorm, RMSNorm
from export.backends.mlc.library import TARGETS
from export.backends.mlc.passes.row_norms import SUMS, with_row_norm
from export.compilation.pipeline import lowered

WIDTH, EPS = 3 * SUMS, 1e-5


def kernel_of(norm: type[RMSNorm] | type[LayerNorm], tokens: int | str, halved: bool = False) -> tirx.PrimFunc:
    """What TVM makes of the norm alone, or of half of it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            self.norm = norm(WIDTH, EPS, "float16")

        def forward(self, x: nn.Tensor) -> nn.Tensor:
            return self.norm(x) / 2.0 if halved else self.norm(x)

    module, _ = Model().export_tvm(spec={"forward": {"x": nn.spec.Tensor((1, tokens, WIDTH), "float16")}})
    (function,) = (each for _, each in lowered({})(module).functions_items() if isinstance(each, tirx.PrimFunc))
    return function


def called(function: tirx.PrimFunc, *given: np.ndarray) -> np.ndarray:
    module = IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    out = tvm.runtime.tensor(np.zeros_like(given[0]))
    tvm.compile(module, target=Target(TARGETS["x86_64"]))["kernel"](*map(tvm.runtime.tensor, given), out)
    return out.numpy()


@pytest.mark.parametrize("tokens", [1, 5, "n"])
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_sums_in_vectors_give_the_numbers_of_the_formula(norm: type[RMSNorm] | type[LayerNorm], tokens: int | str) -> None:
    plain = kernel_of(norm, tokens)
    made = with_row_norm(plain)
    assert f"T.vectorized(T.int64({SUMS}))" in made.script()
    assert ("T.parallel" in made.script()) == (tokens != 1)
    numbers, rows = np.random.default_rng(0), 5 if tokens == "n" else int(tokens)
    x, weight, bias = (numbers.standard_normal(shape).astype(np.float16) for shape in ((1, rows, WIDTH), WIDTH, WIDTH))
    given = (x, weight) if norm is RMSNorm else (x, weight, bias)
    wide = x.astype(np.float64) - (0 if norm is RMSNorm else x.astype(np.float64).mean(-1, keepdims=True))
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPS) * weight + (0 if norm is RMSNorm else bias)
    for function in (plain, made):
        assert np.abs(called(function, *given) - expected).max() < 2e-3 * np.abs(expected).max()


def test_what_follows_a_norm_is_done_where_it_is_written() -> None:
    plain = kernel_of(RMSNorm, "n", halved=True)
    made = with_row_norm(plain)
    assert not made.same_as(plain)
    x, one = np.random.default_rng(1).standard_normal((1, 3, WIDTH)).astype(np.float16), np.ones(WIDTH, np.float16)
    whole = called(with_row_norm(kernel_of(RMSNorm, "n")), x, one)
    np.testing.assert_array_equal(called(made, x, one), whole / 2)


def sums(width: int, kept: bool) -> tirx.PrimFunc:
    """Rows less their sum; where ``kept``, the sums are given too."""
    x = te.placeholder((1, 3, width), "float32", name="x")
    k = te.reduce_axis((0, width), name="k")
    total = te.compute((1, 3), lambda b, t: te.sum(x[b, t, k], axis=k), name="total")
    less = te.compute(x.shape, lambda b, t, n: x[b, t, n] - total[b, t], name="less")
    return te.create_prim_func([x, total, less] if kept else [x, less])


@pytest.mark.parametrize(
    ("width", "kept"), [(WIDTH + 8, False), (SUMS, False), (WIDTH, True)], ids=["ragged", "narrow", "kept"]
)
def test_other_forms_stay_as_they_were(width: int, kept: bool) -> None:
    plain = sums(width, kept)
    assert with_row_norm(plain).same_as(plain)
    assert not with_row_norm(plain := sums(WIDTH, False)).same_as(plain)
