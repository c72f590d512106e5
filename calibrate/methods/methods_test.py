"""Every method on random layers with correlated inputs, on every kind of grid."""

import numpy as np
import pytest
import torch

from calibrate.methods import METHODS, RENAMED, clip, method_named, sign_rounding
from calibrate.methods.base import LayerProblem, Method, solve
from calibrate.methods.gptq import Gptq, column_by_column
from calibrate.methods.mse_clip import MseClip
from calibrate.methods.sign_rounding import SignRounding
from calibrate.statistics.moments import Moment, output_error
from export.quantisation.grid_blockwise import BlockGrid
from export.quantisation.grids import GRIDS
from runtime_py.errors import UsageError

GRID_NAMES = ("ort_int4_b16", "ort_int4_b32", "ort_int4_b128", "ort_int4_asym_b32", "trt_int4_b32", "q4f16_1", "q4f32_1")


def problem(grid: str, seed: int, rows: int = 48, columns: int = 160, count: int = 400) -> LayerProblem:
    """Heavy-tailed weights; inputs of different power that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    weight *= 1 + 3 * (torch.rand(rows, columns, generator=generator) < 0.02)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(count, columns, generator=generator) @ (mixed + 0.5 * torch.eye(columns))
    return LayerProblem("layer", weight, GRIDS[grid], Moment.of(inputs * torch.randn(columns, generator=generator).exp()))


def errors(layer: LayerProblem, method: str) -> tuple[float, float]:
    """Output error of a method's codes as they are, and of plain rounding."""
    error = output_error(layer.change(method_named(method).run(layer)), layer.moment).sum()
    return float(error), float(output_error(layer.change(layer.grid.quantise(layer.weight)), layer.moment).sum())


@pytest.mark.parametrize("grid", GRID_NAMES)
@pytest.mark.parametrize(
    ("method", "most"), [("mse-clip", 0.9), ("gptq", 0.5), ("awq", 0.9), ("awq-gptq", 0.5), ("sign-rounding", 0.85)]
)
def test_calibrated_methods_lower_the_output_error(method: str, most: float, grid: str) -> None:
    for seed in range(3):
        error, plain = errors(problem(grid, seed), method)
        assert error < most * plain, f"seed {seed}"


@pytest.mark.parametrize("grid", GRID_NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_no_row_is_worse_than_plain_rounding(method: str, grid: str) -> None:
    for seed in (3, 4):
        layer = problem(grid, seed, rows=24, count=100)
        outcome = solve(method_named(method), layer)
        plain = output_error(layer.change(layer.grid.quantise(layer.weight)), layer.moment)
        row_errors = output_error(layer.change(outcome.codes), layer.moment)
        assert bool((row_errors <= plain * (1 + 1e-5)).all())
        assert outcome.error == pytest.approx(float(row_errors.sum()), rel=1e-4)
        assert outcome.rounded_error == pytest.approx(float(plain.sum()), rel=1e-4)


@pytest.mark.parametrize("grid", GRID_NAMES)
def test_hqq_lowers_the_norm_it_minimises(grid: str) -> None:
    layer = problem(grid, 5)

    def norm(change: torch.Tensor) -> float:
        return float(change.abs().pow(0.7).sum())

    assert norm(layer.change(method_named("hqq").run(layer))) < norm(layer.change(layer.grid.quantise(layer.weight)))


@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if grid.group != 0])
def test_what_a_method_sees_is_what_the_package_holds(name: str) -> None:
    """fit, round, read and codes against quantise and dequantise, a tail group and a row of zeros included."""
    grid = GRIDS[name]
    layer = LayerProblem("layer", torch.randn(9, 3 * grid.group + 8, generator=torch.Generator().manual_seed(0)), grid)
    layer.weight[4] = 0
    blocks = layer.blocks(layer.weight)
    for factor in (1.0, 0.7, -0.9 if grid.negative_scales else 0.9):
        parameters = grid.fit(blocks, factor)
        codes = grid.round(blocks, parameters[..., None])
        stored = layer.codes(codes, parameters)
        read = layer.flat(grid.read(codes, parameters[..., None]))
        assert torch.equal(grid.dequantise(stored)[:, : layer.weight.shape[1]], read)
        nearest = (read - layer.weight).abs()
        for step in (-1, 1):
            other = layer.flat(grid.read((codes + step).clamp(0, grid.highest), parameters[..., None]))
            slack = 2e-3 * layer.weight.abs() + 1e-6
            assert bool((nearest <= (other - layer.weight).abs() + slack).all())
        plain = grid.quantise(layer.weight)
        assert stored.scales.dtype == plain.scales.dtype
        if factor == 1.0:
            assert torch.equal(stored.scales, plain.scales)
            assert float((stored.codes != plain.codes).float().mean()) < (0.01 if name.startswith("q4") else 1e-9)
        if isinstance(grid, BlockGrid):
            assert not grid.dequantise(stored)[:, layer.weight.shape[1] :].any()


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("grid", ["ort_int4_b32", "ort_int4_asym_b32", "trt_int4_b32", "q4f16_1"])
def test_gptq_is_the_published_loop(grid: str, ordered: bool) -> None:
    """Frantar et al.'s loop over the Cholesky factor of the inverse, in float64, with the same static groups."""
    for seed in range(3):
        layer = problem(grid, seed, rows=16, columns=150)
        parameters = layer.grid.fit(layer.blocks(layer.weight), 0.9)
        assert layer.moment is not None
        order, upper = layer.moment.factor(0.01, ordered)
        solved = column_by_column(layer, parameters, order, upper)
        wanted = textbook(layer, parameters, order)
        assert float((solved != wanted).double().mean()) < 0.002, "ties aside"


def textbook(layer: LayerProblem, parameters, order: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    assert layer.moment is not None
    moment = layer.moment.matrix.double()
    moment = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(moment))
    inverse = torch.linalg.cholesky(torch.linalg.inv(moment[order][:, order]), upper=True)
    weight = layer.weight.double()[:, order].clone()
    codes = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        chosen = parameters[:, int(order[column]) // layer.group]
        code = layer.grid.round(weight[:, column].float(), chosen)
        lost = (weight[:, column] - layer.grid.read(code, chosen).double()) / inverse[column, column]
        weight[:, column:] -= lost[:, None] * inverse[column, column:]
        codes[:, column] = code.double()
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored.float()


def test_gptq_rounds_a_layer_that_saw_nothing() -> None:
    layer = problem("ort_int4_b32", 0)
    blind = LayerProblem("layer", layer.weight, layer.grid, None)
    for method in METHODS:
        assert solve(method_named(method), blind).codes.codes.shape == layer.grid.quantise(layer.weight).codes.shape


def test_rank_deficient_moments_are_damped() -> None:
    layer = problem("ort_int4_b32", 0, count=3)
    assert layer.moment is not None
    layer.moment.matrix[:, 7] = layer.moment.matrix[7] = 0
    outcome = solve(Gptq(), layer)
    assert np.isfinite(outcome.error)
    assert outcome.error < outcome.rounded_error


def test_more_turns_of_sign_rounding_do_not_hurt() -> None:
    layer = problem("ort_int4_b32", 1)
    losses = [float(output_error(layer.change(SignRounding(n).run(layer)), layer.moment).sum()) for n in (1, 50, 200)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("method", [MseClip(), SignRounding(3)], ids=lambda method: method.name)
def test_a_layer_of_many_parts_has_the_codes_of_one(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = problem("ort_int4_b32", 2, rows=20, columns=96)
    whole = method.run(layer)
    for module in (clip, sign_rounding):
        monkeypatch.setattr(module, "ELEMENTS", 7 * 96)
    parts = method.run(layer)
    assert parts.codes.shape == whole.codes.shape
    assert float((parts.codes != whole.codes).float().mean()) < 0.01, "products of fewer rows may round otherwise"
    torch.testing.assert_close(parts.scales, whole.scales, rtol=0.02, atol=0)


def test_the_moment_is_the_output_error() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, change = torch.randn(50, 24, generator=generator), torch.randn(5, 24, generator=generator)
    moment = Moment.of(inputs[:20])
    moment.add(inputs[20:].view(2, 15, 24))
    assert moment.count == 50
    torch.testing.assert_close(output_error(change, moment), (inputs @ change.T).square().sum(0))
    order, upper = moment.factor(1e-6, True)
    torch.testing.assert_close(upper @ upper.T, moment.matrix[order][:, order], rtol=1e-3, atol=1e-3)
    assert torch.equal(upper, upper.triu())


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="--method best"):
        method_named("best")


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_an_old_name_is_refused_with_the_new_one(name: str) -> None:
    """Without a word, a script that asks for ``rtn`` would take another method, or plain rounding, for what it had."""
    with pytest.raises(UsageError) as raised:
        method_named(name)
    assert raised.value.next_step.startswith(f"write --method {RENAMED[name]}")
    assert method_named(RENAMED[name]).name == RENAMED[name]
