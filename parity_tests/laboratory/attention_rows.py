"""One GroupQueryAttention over a filled cache, by rows and by the cache's type: milliseconds, and whether rows agree.

    python -m parity_tests.laboratory.attention_rows [--heads 36 --kv-heads 36] [--past 1024] [--threads 1]
        [--sequences 8 --rows 1] [--operators 12] [--scale 1]

Types: float32, float16, and int8 and int4 with a scale a channel (``kv_cache_bit_width`` 8 and 4; microsoft/onnxruntime,
docs/ContribOperators.md, com.microsoft.GroupQueryAttention). With ``--operators`` as many are called in turn, each over
caches of its own, as a decoder's layers are: one operator alone finds its cache in the processor's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

ROWS = (1, 2, 4, 8)
WIDTH, ROUNDS = 64, 30
LARGEST = {"int8": 127, "int4": 7}
"""Of caches of integers."""
STEPS = {cache: np.float32(4 / largest) for cache, largest in LARGEST.items()}
"""Their scales: numbers of a normal distribution up to four deviations."""
TYPES = ("float32", "float16", "int8", "int4")


@dataclass(frozen=True)
class Shape:
    """What is measured; ``sequences`` of ``rows`` each, in ``operators`` with caches of their own."""

    heads: int
    kv_heads: int
    past: int
    threads: int
    sequences: int
    operators: int
    scale: float
    rows: tuple[int, ...]


def session(shape: Shape, cache: str) -> Any:
    """A graph of the one operator; activations are float32 where the cache is of integers, else of its type."""
    import onnxruntime
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
    held = kinds.get(cache, TensorProto.UINT8)
    given = TensorProto.FLOAT if cache in LARGEST else held
    names = ["q", "k", "v", "past_key", "past_value", "last", "total"]
    heads, kv_heads, count = shape.heads, shape.kv_heads, shape.sequences
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": shape.scale}
    value = helper.make_tensor_value_info
    wide = zip("qkv", (heads, kv_heads, kv_heads), strict=True)
    inputs = [value(name, given, [count, "rows", number * WIDTH]) for name, number in wide]
    inputs += [value(name, held, [count, kv_heads, "capacity", WIDTH // (1 + (cache == "int4"))]) for name in names[3:5]]
    inputs += [value("last", TensorProto.INT32, [count]), value("total", TensorProto.INT32, [1])]
    if cache in LARGEST:
        names += [""] * 5 + ["key_scale", "value_scale"]
        attributes |= {"kv_cache_bit_width": int(cache[3:]), "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        inputs += [value(name, TensorProto.FLOAT, [kv_heads, 1, WIDTH]) for name in names[-2:]]
    node = helper.make_node("GroupQueryAttention", names, ["out", "key", "value"], domain="com.microsoft", **attributes)
    outputs = [value("out", given, [count, "rows", heads * WIDTH]), value("key", held, None), value("value", held, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = shape.threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@dataclass(frozen=True)
class Filled:
    """Random inputs of one operator: keys and values of its cache, and q, k, v of as many rows as are asked for."""

    cache: tuple[np.ndarray, ...]
    fed: tuple[np.ndarray, ...]
    step: np.float32 | None

    @staticmethod
    def drawn(shape: Shape, cache: str, draw: np.random.Generator) -> Filled:
        """Float32 but for the types of ``cache``."""
        kind, sequences = np.dtype("float32" if cache in LARGEST else cache), shape.sequences
        size = (sequences, shape.kv_heads, shape.past + max(shape.rows), WIDTH)
        filled = [draw.standard_normal(size).astype(np.float32) for _ in range(2)]
        caches = [codes(array, cache) if cache in LARGEST else array.astype(cache) for array in filled]
        counts = (shape.heads, shape.kv_heads, shape.kv_heads)
        fed = (draw.standard_normal((sequences, max(shape.rows), count * WIDTH)).astype(kind) for count in counts)
        return Filled(tuple(caches), tuple(fed), STEPS.get(cache))

    def bound(self, opened: Any, shape: Shape, rows: int) -> tuple[Any, np.ndarray]:
        """A binding of the first rows, over a copy of the cache, and where its output will be."""
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_numpy
        values = {name: np.ascontiguousarray(array[:, :rows]) for name, array in zip("qkv", self.fed, strict=True)}
        last = np.full(shape.sequences, shape.past + rows - 1, np.int32)
        values |= {"last": last, "total": np.array([shape.past + rows], np.int32)}
        if self.step is not None:
            scales = np.full((shape.kv_heads, 1, WIDTH), self.step)
            values |= dict.fromkeys(("key_scale", "value_scale"), scales)
        binding = opened.io_binding()
        for name, given in values.items():
            binding.bind_ortvalue_input(name, make(given))
        for name, present, array in zip(("past_key", "past_value"), ("key", "value"), self.cache, strict=True):
            buffer = make(array)
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present, buffer)
        out = np.empty((shape.sequences, rows, shape.heads * WIDTH), self.fed[0].dtype)
        binding.bind_ortvalue_output("out", make(out))
        return binding, out


def codes(numbers: np.ndarray, cache: str) -> np.ndarray:
    """Integers of a cache: int8, or uint8 of half the width, the first of two channels in the lower half of a byte."""
    largest = LARGEST[cache]
    whole = np.clip(np.rint(numbers / STEPS[cache]), -largest, largest).astype(np.int8)
    if cache == "int8":
        return whole
    shifted = (whole + 8).astype(np.uint8)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def measured(shape: Shape, cache: str) -> str:
    """A line: milliseconds by rows, and the largest difference of the first row from that of one row, and of two rows."""
    draw, opened = np.random.default_rng(0), session(shape, cache)
    operators = [Filled.drawn(shape, cache, draw) for _ in range(shape.operators)]
    times, first = [], []
    for rows in shape.rows:
        bindings = [operator.bound(opened, shape, rows) for operator in operators]
        opened.run_with_iobinding(bindings[0][0])
        first.append(bindings[0][1][0, 0].astype(np.float64))
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for binding, _ in bindings:
                opened.run_with_iobinding(binding)
            taken.append((time.perf_counter() - began) / len(bindings))
        times.append(f"{rows} rows {statistics.median(taken) * 1e3:.3f} ms")
    line = f"{cache:8} {'  '.join(times)}"
    if len(first) < 2:
        return line
    alone, pair = (max(float(np.abs(row - first[base]).max()) for row in first[1:]) for base in (0, 1))
    return f"{line}  from one row {alone:.1e}, from two {pair:.1e}"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time and difference of rows in one GroupQueryAttention, by the cache's type.")
    numbers = (
        ("--heads", 36),
        ("--kv-heads", 36),
        ("--past", 1024),
        ("--threads", 1),
        ("--sequences", 1),
        ("--operators", 1),
    )
    for name, default in numbers:
        made.add_argument(name, type=flags.whole_number(1), default=default, metavar="N", help="default %(default)s")
    made.add_argument("--rows", type=flags.whole_number(1), nargs="+", default=ROWS, metavar="N", help="default %(default)s")
    made.add_argument("--scale", type=float, default=WIDTH**-0.5, metavar="X", help="of scores; default %(default)s")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    names = ("heads", "kv_heads", "past", "threads", "sequences", "operators", "scale")
    shape = Shape(rows=tuple(given.rows), **{name: getattr(given, name) for name in names})
    for cache in TYPES:
        console.out(measured(shape, cache))
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.attention_rows", arguments)


if __name__ == "__main__":
    sys.exit(main())
