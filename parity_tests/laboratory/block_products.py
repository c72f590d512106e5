"""How fast a decode step's library multiplies rows with int4 matrices, beside a plain read and ONNX Runtime's operator.

    python -m parity_tests.laboratory.block_products [--threads 1,2] [--rows 1,2,4,8,32] [--variant x86-64-vnni]
        [--near 0,4096]

Random matrices of MatMulNBits as they lie in a file, more copies than caches hold: by the library, by a plain read of the
same bytes, and by ONNX Runtime's MatMulNBits (accuracy_level 4, packed by its session) with as many threads. All take turns;
medians of rounds. A line: inputs x outputs, threads, rows, milliseconds, GB/s of the file's bytes (codes and scales), GB/s
of the plain read, the part of it, milliseconds of ONNX Runtime, how many times the library's. ``--near`` gives a line for
each of its distances, which stands behind the rows; their libraries take turns too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.block_product import BlockMatrix, block_product
from export.processor.targets import TARGETS
from parity_tests.laboratory.kernels import PARTS, as_words, kernel_of, plain_read
from parity_tests.laboratory.row_products import COPIES_BYTES
from parity_tests.laboratory.turns import in_turns
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

SHAPES = "1024x3072,2560x1024,2304x6912,5760x2304,1024x32768"
SPINS = "1000"
"""Looks that a thread of TVM's pool takes for work before it sleeps; the default keeps it busy while others are timed."""

PAUSE = 0.05
"""Seconds before each timing, in which threads of the one before fall asleep."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time products with int4 matrices beside a plain read and ONNX Runtime's operator.")
    made.add_argument("--shapes", default=SHAPES, metavar="LIST", help="inputs x outputs; default %(default)s")
    made.add_argument("--rows", default="1,2,4,8,32", metavar="LIST", help="rows of one call; default %(default)s")
    made.add_argument("--threads", default="1,2", metavar="LIST", help="numbers of threads; default %(default)s")
    made.add_argument("--variant", default="x86-64-vnni", choices=tuple(TARGETS), help="default %(default)s")
    made.add_argument("--bits", type=int, default=4, choices=(4, 8), help="of a code; default %(default)s")
    made.add_argument("--block", type=int, default=32, help="columns that share a scale; default %(default)s")
    made.add_argument(
        "--near", metavar="LIST",
        help="bytes ahead at which codes are asked into the first cache, 0 for not at all; default as packages have it",
    )  # fmt: skip
    made.add_argument("--rounds", type=flags.whole_number(1), default=9, metavar="N", help="default %(default)s")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    counts = [int(number) for number in options.threads.split(",")]
    # both are read when the pool is made, by the first product
    os.environ["TVM_NUM_THREADS"], os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = str(max(counts)), SPINS
    target = Target(TARGETS[options.variant])
    instructions = block_instructions(target)
    assert instructions is not None
    asked = options.near is not None
    tried = [int(number) for number in options.near.split(",")] if asked else [instructions.near]
    read = kernel_of(plain_read(), target)
    for shape in options.shapes.split(","):
        columns, rows = (int(size) for size in shape.split("x"))
        product = Product(BlockMatrix(rows, columns, options.block, options.bits))
        kernels = {
            near: kernel_of(block_product(product.matrix, replace(instructions, near=near)), target) for near in tried
        }
        for threads in counts:
            tvm.get_global_func("runtime.config_threadpool")(1, threads)
            session = product.session(threads)
            for number in (int(number) for number in options.rows.split(",")):
                calls: dict[str | int, Callable[[], None]] = {
                    "read": product.reader(read),
                    "runtime": product.operator(session, number),
                    **{near: product.runner(kernel, number) for near, kernel in kernels.items()},
                }
                taken = in_turns(calls, options.rounds, PAUSE)
                each = {name: seconds / product.copies for name, seconds in taken.items()}
                for near in tried:
                    about = [threads, number, *([near] if asked else [])]
                    console.out(result_line(product, about, each[near], each["read"], each["runtime"]))
    return ExitCode.OK


def result_line(product: Product, about: Sequence[int], ours: float, reading: float, theirs: float) -> str:
    """One line of the table.

    Args:
        about: what was asked for, a column each.
        ours: seconds of the library's product, ``reading`` of the plain read, ``theirs`` of ONNX Runtime's operator.
    """
    matrix, columns = product.matrix, " | ".join(map(str, about))
    rate, read = (product.size / seconds / 1e9 for seconds in (ours, reading))
    return (
        f"| {matrix.columns} x {matrix.rows} | {columns} | {ours * 1e3:.3f} | {rate:.1f} "
        f"| {read:.1f} | {rate / read:.2f} | {theirs * 1e3:.3f} | {theirs / ours:.2f} |"
    )


@dataclass(frozen=True)
class Product:
    """Copies of a random matrix, and what multiplies rows with all of them in turn."""

    matrix: BlockMatrix

    @property
    def size(self) -> int:
        """Bytes of one copy in a file."""
        matrix = self.matrix
        return matrix.rows * (matrix.columns * matrix.bits // 8 + 2 * (matrix.columns // matrix.block))

    @property
    def copies(self) -> int:
        return -(-COPIES_BYTES // self.size)

    @cached_property
    def arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Codes and scales."""
        numbers, matrix = np.random.default_rng(0), self.matrix
        shape = matrix.rows, matrix.columns // matrix.block
        return [
            (
                numbers.integers(0, 256, (*shape, matrix.block * matrix.bits // 8), dtype=np.uint8),
                numbers.uniform(0.01, 0.02, shape).astype(np.float16),
            )
            for _ in range(self.copies)
        ]

    @cached_property
    def tensors(self) -> list[tuple[tvm.runtime.Tensor, tvm.runtime.Tensor]]:
        return [(tvm.runtime.tensor(codes), tvm.runtime.tensor(scales)) for codes, scales in self.arrays]

    def x(self, number: int) -> np.ndarray:
        return np.random.default_rng(number).standard_normal((number, self.matrix.columns)).astype(np.float32)

    def runner(self, kernel: Callable[..., None], number: int) -> Callable[[], None]:
        """The library's."""
        x, out = tvm.runtime.tensor(self.x(number)), tvm.runtime.tensor(np.zeros((number, self.matrix.rows), np.float32))

        def run() -> None:
            for codes, scales in self.tensors:
                kernel(x, codes, scales, out)

        return run

    def reader(self, kernel: Callable[..., None]) -> Callable[[], None]:
        """The same bytes, read and joined by XOR."""
        joined = tvm.runtime.tensor(np.zeros((PARTS, 32), np.uint32))
        views = [as_words(array) for pair in self.tensors for array in pair]

        def run() -> None:
            for view in views:
                kernel(view, joined)

        return run

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        """A graph of as many products as there are copies."""
        matrix, names = self.matrix, range(self.copies)
        attributes: dict[str, Any] = {"K": matrix.columns, "N": matrix.rows, "bits": matrix.bits, "block_size": matrix.block}
        nodes = [
            helper.make_node(
                "MatMulNBits",
                ["x", f"codes{at}", f"scales{at}"],
                [f"out{at}"],
                domain="com.microsoft",
                accuracy_level=4,
                **attributes,
            )
            for at in names
        ]
        weights = [
            numpy_helper.from_array(array, f"{name}{at}")
            for at, (codes, scales) in enumerate(self.arrays)
            for name, array in (("codes", codes), ("scales", scales.astype(np.float32).reshape(-1)))
        ]
        real = TensorProto.FLOAT
        ends = [helper.make_tensor_value_info(f"out{at}", real, ["n", matrix.rows]) for at in names]
        inputs = [helper.make_tensor_value_info("x", real, ["n", matrix.columns])]
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            helper.make_graph(nodes, "products", inputs, ends, weights), opset_imports=domains, ir_version=10
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def operator(self, session: onnxruntime.InferenceSession, number: int) -> Callable[[], None]:
        """ONNX Runtime's."""
        given = {"x": self.x(number)}

        def run() -> None:
            session.run(None, given)

        return run


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each shape and number of rows; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.block_products", arguments)


if __name__ == "__main__":
    sys.exit(main())
