"""The product of rows with int4 codes by byte instructions: its numbers, its edges, what is left to other schedules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te, tirx
from tvm.ir import IRModule
from tvm.target import Target

from export.backends.mlc.blocks.linear import dequantised
from export.backends.mlc.library import TARGETS
from export.backends.mlc.parameters import GROUP
from export.backends.mlc.passes.cpu_schedule import ScheduleForCpu, SetAside
from export.backends.mlc.passes.many_rows import MANY
from export.processor.byte_products import Arm64Dot, Avx2, Vnni, byte_products
from export.processor.targets import TARGETS as PROCESSORS
from runtime_py.backends.processor import VARIANTS, fastest_variant

X86, ARM64, AVX512 = Target(TARGETS["x86_64"]), Target(TARGETS["aarch64"]), Target(PROCESSORS["x86-64-vnni"])
OPTIONS = {"tirx.disable_cse_tir": True}
"""As the library is compiled."""


def product(rows: int, columns: int, dtype: str, tokens: int | tirx.Var = 1) -> tirx.PrimFunc:
    """x W^T as export.backends.mlc.blocks.linear writes it, and a residual as fusion puts it behind: float32."""
    x = te.placeholder((1, tokens, columns), dtype, name="x")
    residual = te.placeholder((1, tokens, rows), "float32", name="residual")
    words = te.placeholder((rows, columns // 8), "uint32", name="words")
    scales = te.placeholder((rows, columns // 32), dtype, name="scales")
    matrix = te.compute((rows, columns), lambda n, k: dequantised(words, scales, n, k, dtype), name="dequantise")
    k = te.reduce_axis((0, columns), name="k")
    summed = te.compute(
        (1, tokens, rows),
        lambda b, t, n: te.sum(x[b, t, k].astype("float32") * matrix[n, k].astype("float32"), axis=k),
        name="matmul",
    )
    total = te.compute(summed.shape, lambda b, t, n: summed[b, t, n] + residual[b, t, n], name="total")
    return te.create_prim_func([x, words, scales, residual, total])


def whole_product(rows: int, columns: int, tokens: int = 1) -> tirx.PrimFunc:
    """x W^T of a matrix that is stored as it is."""
    x = te.placeholder((1, tokens, columns), "float32", name="x")
    matrix = te.placeholder((rows, columns), "float32", name="matrix")
    k = te.reduce_axis((0, columns), name="k")
    return te.create_prim_func(
        [x, matrix, te.compute((1, tokens, rows), lambda b, t, n: te.sum(x[b, t, k] * matrix[n, k], axis=k), name="matmul")]
    )


def scheduled(function: tirx.PrimFunc, target: Target = X86) -> IRModule:
    return ScheduleForCpu(target)(IRModule({"matmul": function.with_attr("global_symbol", "matmul")}))


@dataclass(frozen=True)
class Drawn:
    """Codes and scales of a matrix, and what they stand for: float64 (rows, columns)."""

    words: np.ndarray
    scales: np.ndarray
    stands_for: np.ndarray


def drawn(rows: int, columns: int, dtype: str) -> Drawn:
    numbers = np.random.default_rng(rows + columns)
    codes = numbers.integers(0, 15, (rows, columns)).astype(np.uint32)
    scales = numbers.uniform(0.01, 0.02, (rows, columns // 32)).astype(dtype)
    words = (codes.reshape(rows, -1, 8) << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32)
    return Drawn(words, scales, (codes.astype(np.float64) - 7) * np.repeat(scales.astype(np.float64), 32, axis=1))


class Kernel:
    """The scheduled product, compiled for this machine."""

    def __init__(self, rows: int, columns: int, dtype: str, tokens: int | tirx.Var = 1, target: Target = X86) -> None:
        self.matrix = drawn(rows, columns, dtype)
        self.module = scheduled(product(rows, columns, dtype, tokens), target)
        with tvm.transform.PassContext(config=OPTIONS):
            self.compiled = tvm.compile(self.module, target=target)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.of_rows(x[None])[0]

    def of_rows(self, x: np.ndarray) -> np.ndarray:
        out, residual = (tvm.runtime.tensor(np.zeros((1, len(x), len(self.matrix.words)), np.float32)) for _ in range(2))
        given_ = (x[None], self.matrix.words, self.matrix.scales)
        self.compiled["matmul"](*(tvm.runtime.tensor(array) for array in given_), residual, out)
        return out.numpy()[0]


def spread(columns: int, dtype: str) -> np.ndarray:
    """A row whose groups differ in size, each with one value far above its others."""
    numbers = np.random.default_rng(columns)
    x = numbers.standard_normal(columns) * np.repeat(10.0 ** numbers.uniform(-3, 2, columns // 32), 32)
    x[::32] *= 20
    return x.astype(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 5e-7), ("float16", 4e-5)])
@pytest.mark.parametrize(("rows", "columns"), [(70, 2304), (33, 192), (5, 64)])
def test_sums_are_as_exact_as_their_dtype(rows: int, columns: int, dtype: str, bound: float) -> None:
    """float16: half of 2^-15 of a group's largest value, where rounding to float16 takes up to 2^-12 of each value."""
    kernel, x = Kernel(rows, columns, dtype), spread(columns, dtype)
    assert "call_llvm_pure_intrin" in kernel.module.script()
    size = np.abs(kernel.matrix.stands_for) @ np.abs(x.astype(np.float64))
    exact = kernel.matrix.stands_for @ x.astype(np.float64)
    assert (np.abs(kernel(x) - exact) / size).max() < bound


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=64, max_size=64))
@settings(max_examples=40, deadline=None)
def test_any_row_of_finite_numbers(values: list[float]) -> None:
    x = np.array(values, np.float32)
    largest = np.maximum(np.abs(x.reshape(2, 32)).max(1).astype(np.float64), 2.0**-95)
    weights = np.abs(small().matrix.stands_for).reshape(5, 2, 32).sum(2)
    exact = small().matrix.stands_for @ x.astype(np.float64)
    bound = 2.0**-22 * (weights * largest).sum(1)
    fits = np.abs(small().matrix.stands_for) @ np.abs(x.astype(np.float64)) < 3e38
    assert (np.abs(small()(x)[fits] - exact[fits]) <= bound[fits]).all()


@cache
def small() -> Kernel:
    """Compiled when the first test asks."""
    return Kernel(5, 64, "float32")


def test_what_is_not_a_number_spoils_every_sum() -> None:
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones(64, np.float32)
        x[40] = value
        assert np.isnan(small()(x)).all()
    assert (small()(np.zeros(64, np.float32)) == 0).all()


@pytest.mark.parametrize("tokens", [3, tirx.Var("seq_len", "int64")], ids=["fixed", "any"])
def test_many_rows_are_multiplied_as_one_is(tokens: int | tirx.Var) -> None:
    """A library's functions of a prompt take one row too, where a decoder's rows have sides (`run_decoder`)."""
    one, many = Kernel(70, 192, "float16"), Kernel(70, 192, "float16", tokens)
    rows = np.stack([spread(192, "float16") * np.float16(factor) for factor in (1, -0.5, 0.0625)])
    alone = np.stack([one(row) for row in rows])
    assert np.array_equal(many.of_rows(rows), alone)
    if not isinstance(tokens, int):
        assert np.array_equal(many.of_rows(rows[1:2]), alone[1:2])


VNNI = pytest.mark.skipif(fastest_variant(VARIANTS) != "x86-64-vnni", reason="this processor lacks AVX-512 with VNNI")


@pytest.mark.parametrize("target", [X86, pytest.param(AVX512, marks=VNNI)], ids=["avx2", "vnni"])
@pytest.mark.parametrize("columns", [256, 384])
def test_a_row_has_the_same_bits_among_many(columns: int, target: Target) -> None:
    """From `MANY` rows on panels of the matrix are multiplied; strides of 256 columns, a last one that is not whole."""
    kernel = Kernel(64, columns, "float16", tirx.Var("seq_len", "int64"), target)
    assert ("vpdpwssd" if target is AVX512 else "pmadd.wd") in kernel.module.script()
    numbers = np.random.default_rng(columns)
    row = spread(columns, "float16")
    rows = np.stack(
        [
            numbers.permutation(row.reshape(-1, 32)).reshape(-1) * np.float16(2.0 ** numbers.integers(-6, 2))
            for _ in range(MANY + 5)
        ]
    )
    rows[3, 40] = np.nan
    alone = np.stack([kernel(one) for one in rows])
    assert np.isnan(alone[3]).all() and np.isfinite(np.delete(alone, 3, axis=0)).all()
    for count in (MANY - 1, MANY, MANY + 5):
        assert np.array_equal(kernel.of_rows(rows[:count]), alone[:count], equal_nan=True)
    weights, groups = kernel.matrix.stands_for, (64, columns // 32, 32)
    bound = np.abs(rows).reshape(len(rows), -1, 32).max(2).astype(np.float64) @ np.abs(weights).reshape(groups).sum(2).T
    error = np.abs(alone - rows.astype(np.float64) @ weights.T)
    assert (np.delete(error, 3, axis=0) <= 1.01 * 2.0**-15 * np.delete(bound, 3, axis=0)).all()


@VNNI
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "columns"), [(70, 2304), (36, 384), (64, 384), (33, 192), (5, 96)])
def test_avx_512_has_the_bits_of_avx2(rows: int, columns: int, dtype: str) -> None:
    """Rows shorter than a stride, rows that are no multiple of those multiplied at once; a prompt, and a row alone."""
    tokens = tirx.Var("seq_len", "int64")
    narrow, wide = (Kernel(rows, columns, dtype, tokens, target) for target in (X86, AVX512))
    assert "vpdpbusd" in wide.module.script() and "vpdpbusd" not in narrow.module.script()
    many = np.stack([spread(columns, dtype) * np.dtype(dtype).type(factor) for factor in (1, -0.5, 0.25, 2, -1, 0.125) * 5])
    many[2, 5] = np.inf
    expected = narrow.of_rows(many)
    assert np.isnan(expected[2]).all() and np.isfinite(np.delete(expected, 2, axis=0)).all()
    assert np.array_equal(wide.of_rows(many), expected, equal_nan=True)
    assert np.array_equal(wide.of_rows(many[3:9]), expected[3:9])
    assert np.array_equal(wide(many[0]), expected[0])
    assert np.array_equal(Kernel(rows, columns, dtype, target=AVX512)(many[1]), expected[1])


def test_products_are_set_aside_as_they_were() -> None:
    module = IRModule({"matmul": product(5, 64, "float32"), "other_matmul": whole_product(5, 96)})
    aside = SetAside()
    assert aside(module)["matmul"].same_as(module["matmul"])
    made = aside.scheduled(AVX512)
    assert [variable.name_hint for variable in made.functions] == ["matmul"]
    assert made["matmul"].attrs["global_symbol"] == "matmul" and "vpdpbusd.256" in made.script()


def test_other_products_keep_their_strips() -> None:
    for tokens in (1, 2):
        assert "llvm" not in scheduled(whole_product(64, 96, tokens)).script()


@pytest.mark.parametrize("columns", [32, 48, 64, 96, 112, 128])
def test_a_plan_counts_on_the_products_that_are_written(columns: int) -> None:
    written = "vpdpbusd" in scheduled(product(5, columns, "float32"), AVX512).script()
    assert written == (columns % GROUP == 0)


def gate(tokens: int, columns: int) -> tirx.PrimFunc:
    """silu of a row's first half times its second one, in the steps in which Relax has them."""
    x = te.placeholder((1, tokens, 2 * columns), "float16", name="x")
    one = te.compute((1, tokens, columns), lambda b, t, n: x[b, t, n], name="one")
    sigmoid = te.compute(one.shape, lambda b, t, n: te.sigmoid(one[b, t, n]), name="sigmoid")
    silu = te.compute(one.shape, lambda b, t, n: one[b, t, n] * sigmoid[b, t, n], name="silu")
    return te.create_prim_func(
        [x, te.compute(one.shape, lambda b, t, n: silu[b, t, n] * x[b, t, n + columns], name="gated")]
    )


def test_gates_are_shared_out_with_the_same_numbers() -> None:
    module = IRModule({"fused_silu": gate(3, 96).with_attr("global_symbol", "fused_silu")})
    shared = ScheduleForCpu(X86)(module)
    assert "T.parallel" in shared.script() and "T.parallel" not in module.script()
    x = np.random.default_rng(0).standard_normal((1, 3, 192)).astype(np.float16)
    made = []
    for each in (module, shared):
        out = tvm.runtime.tensor(np.zeros((1, 3, 96), np.float16))
        tvm.compile(each, target=X86)["fused_silu"](tvm.runtime.tensor(x), out)
        made.append(out.numpy())
    assert np.array_equal(*made) and np.abs(made[0]).max() > 0.1


def test_names_get_the_prefix_of_a_system_library() -> None:
    """AttachGlobalSymbol walks through the kernel then, and through its addresses."""
    module = scheduled(product(5, 64, "float32"), ARM64).with_attr("system_lib_prefix", "row_product_")
    named = relax.transform.AttachGlobalSymbol()(module)
    assert [variable.name_hint for variable in named.functions] == ["row_product_matmul"]
    assert "llvm.prefetch" in named.script() and "sdot" in named.script()


@pytest.mark.parametrize(
    ("target", "first"),
    [(X86, {"2": 16384, "3": 3072}), (AVX512, {"2": 16384, "3": 1152 + 3072}), (ARM64, {"3": 4608})],
    ids=["avx2", "vnni", "arm64"],
)
def test_codes_of_a_row_alone_are_asked_into_two_caches(target: Target, first: dict[str, int]) -> None:
    """By cache, how far ahead: the first one's from the farthest row of the matrix; arm64, not measured, asks once."""
    script = scheduled(product(64, 2304, "float16"), target).script()
    asked = re.findall(r"words\[v\w* \* 32, .* \* \d+ \+ ([\d +]+)\) // 4\]\), 0, (\d), 1\)", script)
    assert asked
    found: dict[str, int] = {}
    for distance, cache_ in asked:
        found[cache_] = min(found.get(cache_, 1 << 30), sum(int(part) for part in distance.split("+")))
    assert found == first


def test_instructions_are_those_that_every_processor_of_a_target_has() -> None:
    assert byte_products(X86) == Avx2() and byte_products(ARM64) == Arm64Dot() and byte_products(AVX512) == Vnni()
    assert byte_products(Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu"})) is None
    assert byte_products(Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu"})) is None
