"""``python -m parity_tests.laboratory.calibration_libraries NAME --model minicpm-v``: output errors and seconds.

The table is Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from calibrate.blockwise import Scales
from calibrate.methods import METHODS, method_named
from calibrate.statistics.moments import output_error
from parity_tests.laboratory.calibration_libraries.problem import Captured, Library, captured
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError

if TYPE_CHECKING:
    from torch import Tensor

LIBRARIES = {
    "onnxruntime": "parity_tests.laboratory.calibration_libraries.onnxruntime_nbits",
    "gptqmodel": "parity_tests.laboratory.calibration_libraries.gptqmodel_gptq",
    "auto-round": "parity_tests.laboratory.calibration_libraries.auto_round_tuning",
    "llm-compressor": "parity_tests.laboratory.calibration_libraries.llm_compressor_gptq",
    "nncf": "parity_tests.laboratory.calibration_libraries.nncf_weights",
}

OURS = tuple(name for name in METHODS if not isinstance(method_named(name), Scales))
"""Methods that scale columns change the layer before as well, so that one layer alone says nothing of them."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Print a Markdown table: error over output power in thousandths, and processor seconds.")
    made.add_argument("library", choices=sorted(LIBRARIES))
    made.add_argument("--model", required=True)
    made.add_argument("--weights", default="demo")
    made.add_argument("--block-size", type=int, default=32)
    made.add_argument("--samples", type=int, default=24)
    flags.seed(made, "of the samples")
    made.add_argument("--layers", default="", metavar="PART,PART", help="only layers whose names hold one of these")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    library = library_named(given.library)
    version = importlib.metadata.version(library.DISTRIBUTION)
    layers = tuple(part for part in given.layers.split(",") if part)
    seed = flags.seed_number(given.seed)
    problems = captured(given.model, given.weights, given.block_size, given.samples, seed, layers)
    _table(f"{library.DISTRIBUTION} {version}", library, problems)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.calibration_libraries", arguments)


def library_named(name: str) -> Library:
    """A library's module.

    Raises:
        MachineError: the library is not installed; the message says how to install it.
    """
    module = importlib.import_module(LIBRARIES[name])
    library = cast(Library, module)
    try:
        importlib.metadata.version(library.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise MachineError(
            f"{library.DISTRIBUTION} is not installed", f"an environment that has it beside torch {_torch()}",
            f"in an environment of its own, {library.INSTALL}",
        ) from error  # fmt: skip
    return library


def _torch() -> str:
    return importlib.metadata.version("torch")


def _table(title: str, library: Library, layers: Sequence[Captured] | object) -> None:
    columns = ["rounding", *library.METHODS, *(f"our {name}" for name in OURS)]
    sys.stdout.write(f"{title}; output error over output power in thousandths, processor seconds\n\n")
    sys.stdout.write("| layer | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n")
    sums = [[0.0, 0.0] for _ in columns]
    for layer in cast(Sequence[Captured], layers):
        ours = layer.ours
        makers: list[Callable[[], Tensor]] = [lambda ours=ours: ours.change(ours.grid.quantise(ours.weight))]  # type: ignore[misc]
        makers += [lambda m=m, layer=layer: m(layer) - layer.weight for m in library.METHODS.values()]  # type: ignore[misc]
        makers += [lambda n=n, ours=ours: ours.change(method_named(n).run(ours)) for n in OURS]  # type: ignore[misc]
        power = float(output_error(ours.weight, ours.moment).sum())
        cells = [_measured(make, layer, power) for make in makers]
        for total, (error, seconds) in zip(sums, cells, strict=True):
            total[0], total[1] = total[0] + error, total[1] + seconds
        _line(ours.name, cells)
    _line("**sum**", [(error, seconds) for error, seconds in sums])


def _measured(make: Callable[[], Tensor], layer: Captured, power: float) -> tuple[float, float]:
    """Share of the output's power that is lost, and processor seconds; not a number where a library fails on the layer."""
    assert layer.ours.moment is not None
    layer.ours.moment.forget()
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some libraries draw progress bars
            change = make()
    except Exception as error:  # whatever a library raises for a shape that it does not take
        sys.stderr.write(f"{layer.ours.name}: {type(error).__name__}: {error}\n")
        return math.nan, 0.0
    seconds = time.process_time() - began
    return float(output_error(change.detach().float(), layer.ours.moment).sum()) / power, seconds


def _line(name: str, cells: Sequence[tuple[float, float]]) -> None:
    texts = [f"{1e3 * error:.2f} ({seconds:.2f} s)" if math.isfinite(error) else "none" for error, seconds in cells]
    sys.stdout.write(f"| {name} | " + " | ".join(texts) + " |\n")
    sys.stdout.flush()
