"""How fast our GPTQ is beside a plain torch loop, on one layer with drawn weights, in one run.

python -m parity_tests.laboratory.gptq_speed [--rows 5760] [--columns 2304] [--grid ort_int4_b32] [--rounds 2]
[--without-plain-loop]

Three solvers of the same problem, in turns, so that a busy machine is equally busy for all of them:

==============  =================================================================================================
ours            `calibrate.methods.gptq`: clip search, static groups, activation order
plain loop      one column after another, every later column corrected at once (a rank-one update of the whole rest)
blocked loop    the published loop, corrections gathered over 128 columns (IST-DASLab/gptq, gptq.py, fasterquant)
==============  =================================================================================================
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from calibrate.methods.base import LayerProblem, solve
from calibrate.methods.gptq import DAMPING, Gptq
from calibrate.statistics.moments import Moment, output_error
from export.quantisation.grids import GRIDS, Grid
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 4096
"""Drawn input rows."""

PUBLISHED_BLOCK = 128


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Print each solver's least seconds (wall clock and processor), its output error, and the ratios.")
    made.add_argument("--rows", type=int, default=5760)
    made.add_argument("--columns", type=int, default=2304)
    made.add_argument("--grid", default="ort_int4_b32", choices=sorted(GRIDS))
    made.add_argument("--rounds", type=int, default=2, help="the least of so many counts; default 2")
    made.add_argument("--without-plain-loop", action="store_true", help="it alone takes minutes on a busy machine")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    layer = drawn_layer(given.rows, given.columns, GRIDS[given.grid])
    solvers: dict[str, Callable[[LayerProblem], Tensor]] = {"ours": ours, "blocked loop": blocked_loop}
    if not given.without_plain_loop:
        solvers["plain loop"] = plain_loop
    least: dict[str, tuple[float, float]] = {}
    errors = {"rounding": float(output_error(layer.change(layer.grid.quantise(layer.weight)), layer.moment).sum())}
    for _ in range(given.rounds):
        for name, solver in solvers.items():
            assert layer.moment is not None
            layer.moment.forget()
            wall, processor = time.perf_counter(), time.process_time()
            solved = solver(layer)
            took = time.perf_counter() - wall, time.process_time() - processor
            least[name] = min(took, least.get(name, took))
            errors[name] = float(output_error(solved - layer.weight, layer.moment).sum())
    wall = time.perf_counter()
    solve(Gptq(), layer)
    checked = time.perf_counter() - wall
    console.out(_text(given.columns, given.rows, least, errors, checked).rstrip("\n"))
    return 0


def drawn_layer(rows: int, columns: int, grid: Grid) -> LayerProblem:
    """Gaussian weights; inputs with a few hundred strong directions, as activations have."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    rank = min(256, columns)
    strong = torch.randn(columns, rank, generator=generator) @ torch.randn(rank, columns, generator=generator) / columns
    inputs = torch.randn(SAMPLES, columns, generator=generator) @ (strong + torch.eye(columns))
    return LayerProblem("drawn", weight, grid, Moment.of(inputs))


def ours(layer: LayerProblem) -> Tensor:
    """The weight as our codes read back."""
    return layer.grid.dequantise(Gptq().run(layer))[:, : layer.weight.shape[1]]


def plain_loop(layer: LayerProblem) -> Tensor:
    """One column at a time, no blocks."""
    import torch

    factor, weight = _inverse_factor(layer), layer.weight.clone()
    codes = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        if column % layer.group == 0:
            parameters = layer.grid.fit(weight[:, column : column + layer.group])
        codes[:, column] = layer.grid.read(layer.grid.round(weight[:, column], parameters), parameters)
        lost = (weight[:, column] - codes[:, column]) / factor[column, column]
        weight[:, column:] -= lost[:, None] * factor[column, column:]
    return codes


def blocked_loop(layer: LayerProblem) -> Tensor:
    """As published: corrections inside a block at once, those beyond it with one product per block."""
    import torch

    factor, weight = _inverse_factor(layer), layer.weight.clone()
    codes = torch.zeros_like(weight)
    columns = weight.shape[1]
    for start in range(0, columns, PUBLISHED_BLOCK):
        stop = min(start + PUBLISHED_BLOCK, columns)
        block, inside = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        lost = torch.zeros_like(block)
        for index in range(stop - start):
            column = start + index
            if column % layer.group == 0:
                parameters = layer.grid.fit(weight[:, column : column + layer.group])
            codes[:, column] = layer.grid.read(layer.grid.round(block[:, index], parameters), parameters)
            lost[:, index] = (block[:, index] - codes[:, column]) / inside[index, index]
            block[:, index:] -= lost[:, index, None] * inside[index, index:]
        weight[:, stop:] -= lost @ factor[start:stop, stop:]
    return codes


def _inverse_factor(layer: LayerProblem) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moment."""
    import torch

    assert layer.moment is not None
    damped = layer.moment.matrix.clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _text(columns: int, rows: int, least: dict[str, tuple[float, float]], errors: dict[str, float], checked: float) -> str:
    import torch

    lines = [f"one layer {columns} -> {rows}, {torch.get_num_threads()} thread(s); least of the rounds"]
    for name, (wall, processor) in least.items():
        relative = errors[name] / errors["rounding"]
        ratio = "" if name == "ours" else f", {wall / least['ours'][0]:.1f} times ours"
        lines.append(f"{name:13} {wall:7.2f} s (processor {processor:.2f} s), error {relative:.3f} of rounding's{ratio}")
    lines.append(f"ours with the comparison row by row against rounding: {checked:.2f} s")
    return "\n".join(lines) + "\n"


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.gptq_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
