"""How fast this machine's MLC library reads int4 matrices when it decodes, beside a plain read of the same bytes.

    python -m parity_tests.laboratory.row_products [--model minicpm-v] [--precision q4f16_1] [--threads 1,2]

Every product of one row of the family's decoder, as the library has it, as the package's kernels for this processor have
it, and as strips of columns (what other products get), over copies of random weights that no cache of a core holds, in turns
with a plain read of them. Medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target

from export.backends.mlc.library import TARGETS, bounds_of, build_module
from export.backends.mlc.package_parts import HOST_VARIANTS
from export.backends.mlc.passes.cpu_schedule import ScheduleForCpu
from export.backends.mlc.passes.pipeline import lowered
from export.compilation.host import host_place
from export.processor.targets import TARGETS as PROCESSORS
from parity_tests.laboratory.kernels import OPTIONS, PARTS, as_words, compiled, kernel_of, plain_read
from parity_tests.laboratory.mlc_traffic.libraries import request_of, spec_of
from parity_tests.laboratory.turns import in_turns
from runtime_py.backends.processor import fastest_variant
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

COPIES_BYTES = 1 << 28
"""Bytes of the copies of one matrix together."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time the decode products of this machine's MLC library beside a plain read of their bytes.")
    made.add_argument("--model", default="minicpm-v", help="a family's name")
    made.add_argument("--precision", default="q4f16_1", choices=("q4f16_1", "q4f32_1"))
    made.add_argument("--threads", default="1,2", metavar="LIST", help="numbers of threads; default %(default)s")
    made.add_argument("--rounds", type=flags.whole_number(1), default=9, metavar="N", help="default %(default)s")
    made.add_argument("--strips", action="store_true", help="also the schedule of several rows")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    module, target = decode_products(options.model, options.precision), Target(TARGETS[host_place()])
    schedules = {"library": (target, target)}
    for variant in HOST_VARIANTS.get(host_place(), ()):
        if fastest_variant([variant]) is not None:
            schedules[variant] = (Target(PROCESSORS[variant]),) * 2
    if options.strips:
        schedules["strips"] = (Target({"kind": "llvm"}), target)
    built = {name: compiled(ScheduleForCpu(loops)(module), code) for name, (loops, code) in schedules.items()}
    read = kernel_of(plain_read(), target)
    counts = [int(number) for number in options.threads.split(",")]
    # the pool is made by the first product, as large as this says
    os.environ["TVM_NUM_THREADS"] = str(max(counts))
    for threads in counts:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        console.out(
            f"{options.precision}, {threads} thread{'s' * (threads > 1)}, GB/s (part of the plain read of the same bytes)"
        )
        best = 0.0
        for variable, kernel in module.functions_items():
            product = Product.of(variable.name_hint, kernel)
            calls = {name: product.runner(machine[variable.name_hint]) for name, machine in built.items()}
            seconds = in_turns({"read": product.reader(read), **calls}, options.rounds)
            rates = {name: product.bytes_read / taken / 1e9 for name, taken in seconds.items()}
            console.out(f"  {product.rows:>6} x {product.columns:<5}{rates_text(rates)}")
            best = max(best, rates["read"])
        console.out(f"  the fastest plain read: {best:.1f}")
    return ExitCode.OK


def rates_text(rates: dict[str, float]) -> str:
    read = rates["read"]
    return "".join(f"  {name} {rate:5.1f}" + f" ({rate / read:.2f})" * (name != "read") for name, rate in rates.items())


def decode_products(family: str, precision: str) -> IRModule:
    """The kernels of ``decode`` that multiply int4 codes with one row, not yet scheduled, one of each shape."""
    request = request_of(spec_of(family, "full", 1), "android", precision)
    whole, _ = build_module(request, host_place())
    with Target(TARGETS[host_place()]), tvm.transform.PassContext(config=OPTIONS):
        whole = lowered(bounds_of(request))(whole)
    chosen = {}
    for variable, function in whole.functions_items():
        if isinstance(function, tirx.PrimFunc) and "int4_matmul" in variable.name_hint:
            row, words = (tuple(parameter.ty.shape) for parameter in function.params[:2])
            if all(isinstance(size, tirx.IntImm) for size in row) and int(row[0]) * int(row[1]) == 1:
                shape = int(words[0]), int(row[-1])
                chosen[shape] = variable.name_hint, function.with_attr("global_symbol", variable.name_hint)
    return IRModule(dict(chosen[shape] for shape in sorted(chosen)))


@dataclass(frozen=True)
class Product:
    """One kernel's arguments: all but the weights are shared by the copies."""

    rows: int
    columns: int
    others: tuple[tvm.runtime.Tensor, ...]
    copies: tuple[tuple[tvm.runtime.Tensor, tvm.runtime.Tensor], ...]

    @classmethod
    def of(cls, name: str, kernel: tirx.PrimFunc) -> Product:
        numbers = np.random.default_rng(len(name))
        shapes = [(tuple(int(size) for size in p.ty.shape), str(p.ty.dtype)) for p in kernel.params]
        (x, dtype), (words, _), (scales, _), *rest = shapes
        others = [numbers.standard_normal(x).astype(dtype), *(np.zeros(shape, kind) for shape, kind in rest)]
        one = 4 * words[0] * words[1] + np.dtype(dtype).itemsize * scales[0] * scales[1]
        copies = [
            (
                # codes 0 to 7: 15 is in no package
                numbers.integers(0, 2**32, words, dtype=np.uint32) & np.uint32(0x77777777),
                numbers.uniform(0.01, 0.02, scales).astype(dtype),
            )
            for _ in range(-(-COPIES_BYTES // one))
        ]
        tensors = tuple(tuple(tvm.runtime.tensor(array) for array in pair) for pair in copies)
        return cls(words[0], x[-1], tuple(map(tvm.runtime.tensor, others)), tensors)

    @property
    def bytes_read(self) -> int:
        return sum(array.numpy().nbytes for array in self.copies[0]) * len(self.copies)

    def runner(self, kernel: Callable[..., None]) -> Callable[[], None]:
        x, *rest = self.others

        def run() -> None:
            for words, scales in self.copies:
                kernel(x, words, scales, *rest)

        return run

    def reader(self, kernel: Callable[..., None]) -> Callable[[], None]:
        """The same bytes, read and joined by XOR."""
        joined = tvm.runtime.tensor(np.zeros((PARTS, 32), np.uint32))
        views = [tuple(as_words(array) for array in pair) for pair in self.copies]

        def run() -> None:
            for pair in views:
                for array in pair:
                    kernel(array, joined)

        return run


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each product; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.row_products", arguments)


if __name__ == "__main__":
    sys.exit(main())
