"""What attention of one decode step costs over a flat cache: the machine code of packages beside ONNX Runtime's operator.

    python -m parity_tests.laboratory.flat_attention [--heads 36 --kv-heads 36] [--size 64] [--threads 1]

Milliseconds a call of one and of eight rows, by the positions that are filled and by the cache's type, and GB/s of the keys
and values read; beside them GroupQueryAttention of the same rows (rotated already, so it does less), and a plain read of the
same bytes. Every call has another cache, together more than a processor keeps; all take turns, medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import tvm
import tvm_ffi
from onnx import TensorProto, helper
from tvm.target import Target
from tvm.tirx import PrimFunc

from export.processor.block_instructions import block_instructions
from export.processor.flat_attention import flat_attention
from export.processor.flat_rows import FlatHeads
from export.processor.targets import TARGETS
from parity_tests.laboratory.kernels import PARTS, kernel_of, plain_read
from parity_tests.laboratory.turns import in_turns
from runtime_py.backends.small_pages import zeros
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

COPIES_BYTES = 1 << 27
"""Bytes of the caches of one kind of call together."""

SPARE = 32
"""Positions of the capacity that are not filled."""

REST = 0.1
"""Seconds between turns of several threads, in which those of the one before stop to look for work."""

STEP = np.float32(4 / 127)
"""The scale of int8 caches."""


@dataclass(frozen=True)
class Case:
    """Calls of ``rows`` over ``positions`` each, their own included; ``caches`` are pairs of keys and values."""

    heads: FlatHeads
    rows: int
    positions: int
    caches: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def drawn(cls, heads: FlatHeads, rows: int, positions: int) -> Case:
        one = drawn(heads, rows, positions + SPARE)
        caches = tuple((kept(one), kept(one)) for _ in range(max(2, COPIES_BYTES // (2 * one.nbytes))))
        return cls(heads, rows, positions, caches)

    @property
    def bytes_read(self) -> int:
        return 2 * self.rows * self.heads.keys * self.positions * self.heads.width * self.caches[0][0].itemsize

    def ours(self, kernel: Callable[..., None]) -> Callable[[], None]:
        heads, half = self.heads, self.heads.rotary // 2
        lengths = np.full(self.rows, self.positions - 1, np.int32)
        qkv = floats(self.rows, (heads.queries + 2 * heads.keys) * heads.size)
        scales = [np.full(heads.keys * heads.width, STEP)] * 2 if heads.cache == "int8" else []
        table = floats(self.rows, half)
        first = [tvm_ffi.from_dlpack(array) for array in (qkv, table, table.copy(), lengths, *scales)]
        out = tvm_ffi.from_dlpack(np.zeros((self.rows, heads.queries * heads.size), np.float32))
        pairs = [tuple(map(tvm_ffi.from_dlpack, pair)) for pair in self.caches]

        def run() -> None:
            for keys, values in pairs:
                kernel(*first, keys, values, out)

        return run

    def theirs(self, opened: onnxruntime.InferenceSession) -> Callable[[], None]:
        bindings = bound(opened, self.heads, self.rows, 1, self.positions, self.caches)

        def run() -> None:
            for binding in bindings:
                opened.run_with_iobinding(binding)

        return run

    def read(self, kernel: Callable[..., None]) -> Callable[[], None]:
        """As many bytes of every cache, read and joined by XOR."""
        joined = tvm.runtime.tensor(np.zeros((PARTS, 32), np.uint32))
        words = self.bytes_read // 2 // (PARTS * 128) * PARTS * 32
        flat = (array.reshape(-1).view(np.uint32)[:words].reshape(PARTS, -1) for pair in self.caches for array in pair)
        arrays = [tvm_ffi.from_dlpack(array) for array in flat]

        def run() -> None:
            for array in arrays:
                kernel(array, joined)

        return run


def kept(array: np.ndarray) -> np.ndarray:
    """A copy where a pool of rows would have it."""
    copy = zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def floats(*shape: int) -> np.ndarray:
    """float32, the same in every run."""
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def drawn(heads: FlatHeads, sequences: int, positions: int) -> np.ndarray:
    """Keys, or values, of the cache's type."""
    shape = sequences, heads.keys, positions, heads.width
    one = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    return one if heads.cache == "int8" else (one * STEP).astype(heads.cache)


def bound(
    opened: onnxruntime.InferenceSession,
    heads: FlatHeads,
    sequences: int,
    tokens: int,
    positions: int,
    caches: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[onnxruntime.IOBinding]:
    """Calls of `session`'s operator, one for each pair of keys and values, that differ in nothing else.

    Args:
        positions: of each sequence, its ``tokens`` of the call included.
    """
    make, quantised = onnxruntime.OrtValue.ortvalue_from_numpy, heads.cache == "int8"
    kind, counts = np.float32 if quantised else heads.cache, (heads.queries, heads.keys, heads.keys)
    shapes = ((sequences, tokens, count * heads.width) for count in counts)
    fed = {name: floats(*shape).astype(kind) for name, shape in zip("qkv", shapes, strict=True)}
    fed |= {"last": np.full(sequences, positions - 1, np.int32), "total": np.array([positions], np.int32)}
    if quantised:
        scales = np.full((heads.keys, 1, heads.width), STEP)
        fed |= {"key_scale": scales, "value_scale": scales}
    values = {name: make(array) for name, array in fed.items()}
    out = make(np.empty((sequences, tokens, heads.queries * heads.width), kind))
    bindings = []
    for pair in caches:
        binding = opened.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for past, present, array in zip(("past_key", "past_value"), ("key", "value"), pair, strict=True):
            buffer = make(array)
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_ortvalue_output("out", out)
        bindings.append(binding)
    return bindings


def session(heads: FlatHeads, threads: int) -> onnxruntime.InferenceSession:
    """One GroupQueryAttention; the queries' scale lies in the tables that turn them, as packages have it."""
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
    held, quantised = kinds[heads.cache], heads.cache == "int8"
    given, value = TensorProto.FLOAT if quantised else held, helper.make_tensor_value_info
    names = ["q", "k", "v", "past_key", "past_value", "last", "total"]
    attributes: dict[str, Any] = {"num_heads": heads.queries, "kv_num_heads": heads.keys, "scale": 1.0, "do_rotary": 0}
    wide = zip("qkv", (heads.queries, heads.keys, heads.keys), strict=True)
    inputs = [value(name, given, ["n", "t", number * heads.width]) for name, number in wide]
    inputs += [value(name, held, ["n", heads.keys, "capacity", heads.width]) for name in names[3:5]]
    inputs += [value("last", TensorProto.INT32, ["n"]), value("total", TensorProto.INT32, [1])]
    if quantised:
        names += [""] * 5 + ["key_scale", "value_scale"]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        inputs += [value(name, TensorProto.FLOAT, [heads.keys, 1, heads.width]) for name in names[-2:]]
    node = helper.make_node("GroupQueryAttention", names, ["out", "key", "value"], domain="com.microsoft", **attributes)
    outputs = [
        value("out", given, ["n", "t", heads.queries * heads.width]),
        value("key", held, None),
        value("value", held, None),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time attention of a decode step over a flat cache beside ONNX Runtime's operator.")
    attention_flags(made, ("--rows", 1, (1, 8)), ("--positions", 1, (64, 512, 1024, 4096)))
    return made


def attention_flags(made: Parser, *lists: tuple[str, int, tuple[int, ...]]) -> None:
    """Which heads are timed, and how.

    Args:
        lists: flags of several numbers, the least that is taken, and the default.
    """
    numbers = (("--heads", 36), ("--kv-heads", 36), ("--size", 64), ("--threads", 1), ("--rounds", 9))
    for name, default in numbers:
        made.add_argument(name, type=flags.whole_number(1), default=default, metavar="N", help="default %(default)s")
    for name, least, several in lists:
        number = flags.whole_number(least)
        made.add_argument(name, type=number, nargs="+", default=several, metavar="N", help="default %(default)s")
    kinds = ("float32", "float16", "int8")
    made.add_argument("--caches", nargs="+", default=("float16", "int8"), choices=kinds, help="default %(default)s")
    made.add_argument("--target", default="x86-64-vnni", choices=tuple(TARGETS), help="default %(default)s")
    flags.talk(made)


def prepared(
    given: argparse.Namespace, write: Callable[[FlatHeads], PrimFunc]
) -> Iterator[tuple[FlatHeads, Callable[..., None], onnxruntime.InferenceSession]]:
    """The heads of each type of cache, the kernel that ``write`` gives for them, and ONNX Runtime's operator."""
    # TVM's threads look for work 300,000 times by default, a tenth of a second in which they disturb the others
    os.environ |= {"TVM_NUM_THREADS": str(given.threads), "TVM_THREAD_POOL_SPIN_COUNT": "3000"}
    target = Target(TARGETS[given.target])
    for cache in given.caches:
        heads = FlatHeads(given.heads, given.kv_heads, given.size, given.size, given.size, given.size**-0.5, cache)
        yield heads, kernel_of(write(heads), target), session(heads, given.threads)


def rest_of(given: argparse.Namespace) -> float:
    """Seconds between turns."""
    return REST if given.threads > 1 else 0


def _run(given: argparse.Namespace) -> int:
    reads = None
    instructions = block_instructions(Target(TARGETS[given.target]))
    assert instructions is not None
    for heads, kernel, opened in prepared(given, partial(flat_attention, sums=instructions.shared_sums)):
        # compiled when the number of threads is set
        reads = reads or kernel_of(plain_read(), Target(TARGETS[given.target]))
        for rows in given.rows:
            for positions in given.positions:
                case = Case.drawn(heads, rows, positions)
                calls = {"ours": case.ours(kernel), "ONNX Runtime": case.theirs(opened), "plain read": case.read(reads)}
                line = f"{heads.cache:8} {rows} rows {positions:5} positions"
                for name, seconds in in_turns(calls, given.rounds, rest_of(given)).items():
                    each = seconds / len(case.caches)
                    line += f"  {name} {each * 1e3:7.3f} ms {case.bytes_read / each / 1e9:5.1f} GB/s"
                console.out(line)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each kind of call; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.flat_attention", arguments)


if __name__ == "__main__":
    sys.exit(main())
