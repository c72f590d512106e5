"""One GroupQueryAttention over a filled cache, by rows and by the cache's type: milliseconds, and whether rows agree.

    python -m parity_tests.laboratory.attention_rows [--heads 36 --kv-heads 36] [--past 1024] [--threads 1]

Types: float32, float16, and int8 with a scale a channel (``kv_cache_bit_width`` 8; microsoft/onnxruntime,
docs/ContribOperators.md, com.microsoft.GroupQueryAttention).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

ROWS = (1, 2, 4, 8)
WIDTH, ROUNDS = 64, 30
STEP = np.float32(4 / 127)
"""The scale of int8 caches: numbers of a normal distribution up to four deviations."""
TYPES = ("float32", "float16", "int8")


def session(heads: int, kv_heads: int, cache: str, threads: int) -> Any:
    """A graph of the one operator; activations are float32 where the cache is int8, else of its type."""
    import onnxruntime
    from onnx import TensorProto, helper

    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
    held = kinds[cache]
    given = TensorProto.FLOAT if cache == "int8" else held
    names = ["q", "k", "v", "past_key", "past_value", "last", "total"]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": WIDTH**-0.5}
    value = helper.make_tensor_value_info
    wide = zip("qkv", (heads, kv_heads, kv_heads), strict=True)
    inputs = [value(name, given, [1, "rows", count * WIDTH]) for name, count in wide]
    inputs += [value(name, held, [1, kv_heads, "capacity", WIDTH]) for name in names[3:5]]
    inputs += [value(name, TensorProto.INT32, [1]) for name in names[5:]]
    if cache == "int8":
        names += [""] * 5 + ["key_scale", "value_scale"]
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        inputs += [value(name, TensorProto.FLOAT, [kv_heads, 1, WIDTH]) for name in names[-2:]]
    node = helper.make_node("GroupQueryAttention", names, ["out", "key", "value"], domain="com.microsoft", **attributes)
    outputs = [value("out", given, [1, "rows", heads * WIDTH]), value("key", held, None), value("value", held, None)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, outputs), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def measured(heads: int, kv_heads: int, cache: str, past: int, threads: int) -> str:
    """A line: milliseconds by rows, and the largest difference of the first row from that of one row, and of two rows."""
    import onnxruntime

    draw = np.random.default_rng(0)
    opened, make = session(heads, kv_heads, cache, threads), onnxruntime.OrtValue.ortvalue_from_numpy
    kind = np.dtype("float32" if cache == "int8" else cache)
    filled = [draw.standard_normal((1, kv_heads, past + 16, WIDTH)).astype(np.float32) for _ in range(2)]
    if cache == "int8":
        filled = [np.clip(np.rint(array / STEP), -127, 127) for array in filled]
    counts = (heads, kv_heads, kv_heads)
    fed = [draw.standard_normal((1, ROWS[-1], count * WIDTH)).astype(kind) for count in counts]
    times, first = [], []
    for rows in ROWS:
        buffers = [make(array.astype(cache)) for array in filled]
        values = {name: np.ascontiguousarray(array[:, :rows]) for name, array in zip("qkv", fed, strict=True)}
        values |= {"last": np.array([past + rows - 1], np.int32), "total": np.array([past + rows], np.int32)}
        if cache == "int8":
            values |= dict.fromkeys(("key_scale", "value_scale"), np.full((kv_heads, 1, WIDTH), STEP, np.float32))
        held = {name: make(array) for name, array in values.items()}
        out = np.empty((1, rows, heads * WIDTH), kind)
        binding = opened.io_binding()
        for name, given in held.items():
            binding.bind_ortvalue_input(name, given)
        for name, present, buffer in zip(("past_key", "past_value"), ("key", "value"), buffers, strict=True):
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_ortvalue_output("out", make(out))
        opened.run_with_iobinding(binding)
        first.append(out[0, 0].astype(np.float64))
        taken = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            opened.run_with_iobinding(binding)
            taken.append(time.perf_counter() - began)
        times.append(f"{rows} rows {statistics.median(taken) * 1e3:.3f} ms")
    alone, pair = (max(float(np.abs(row - first[base]).max()) for row in first[1:]) for base in (0, 1))
    return f"{cache:8} {'  '.join(times)}  from one row {alone:.1e}, from two {pair:.1e}"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time and difference of rows in one GroupQueryAttention, by the cache's type.")
    for name, default in (("--heads", 36), ("--kv-heads", 36), ("--past", 1024), ("--threads", 1)):
        made.add_argument(name, type=flags.whole_number(1), default=default, metavar="N", help="default %(default)s")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    for cache in TYPES:
        console.out(measured(given.heads, given.kv_heads, cache, given.past, given.threads))
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.attention_rows", arguments)


if __name__ == "__main__":
    sys.exit(main())
