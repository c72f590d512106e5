"""How long a picture takes in a vision tower: our graphs by precision beside a plain one in ONNX Runtime and OpenVINO.

    python -m parity_tests.laboratory.vision_speed --side 448 --layers 27 --peer openvino [--graphs DIR]

The tower is SigLIP-so400m (width 1152, 16 heads, MLP 4304) with random weights. All rows are timed in turn in one
process, so that a drift of the machine touches them alike; ratios are of medians. ``plain fp32`` is the tower traced
with PyTorch's own operators to standard ONNX, which is also what OpenVINO reads (with its bf16 hint). ``cosine`` is that
of the worst token with the plain graph in ONNX Runtime: random weights, so no word on quality (`observe_tower` has it).
``int8 library`` is the ``int8`` tower as machine code (``--vision-library`` of an export), which needs apache-tvm.
``--finer 10`` adds two rows in which a tenth of the layers behind the first block, spread evenly, is in a finer form
(``--choice`` of an export): inputs in 14 bits, or float16. Graphs of this side and depth that lie in ``--graphs`` already
are timed as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.judging.metrics import row_cosines
from parity_tests.laboratory.vision_towers import PATCH, PLAIN, ROUNDED, opened_library, spread, tower, write
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import MachineError
from runtime_py.peers.machine import describe

if TYPE_CHECKING:
    from export.specs import ModelSpec

LIBRARY, PEER = "int8 library", "openvino bf16"
BY_OPERATOR = 3
"""Calls over which the time of each operator is the mean, after one that is not counted."""


@dataclass(frozen=True)
class Row:
    """One graph: milliseconds of a picture and of the processor, the least of each, and ratios to `PLAIN` of medians.

    Processor time is what a shared machine disturbs least; with more than one thread it counts threads that wait as well.
    """

    name: str
    median_ms: float
    least_ms: float
    ratio: float
    processor_ms: float
    least_processor_ms: float
    processor_ratio: float
    cosine: float


def onnx_runtime(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A call of the graph as `runtime_py.backends.ort` opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixel_values": pixels})[0]


def by_operator(path: Path, threads: int, pixels: np.ndarray) -> dict[str, float]:
    """Milliseconds of a call by operator, as ONNX Runtime's profile has them, the longest first."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as name:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(name) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(1 + BY_OPERATOR):
            session.run(None, {"pixel_values": pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [each for each in events if each["cat"] == "Node" and each["name"].endswith("_kernel_time")]
    taken: dict[str, float] = {}
    for each in kernels[len(kernels) // (1 + BY_OPERATOR) :]:
        operator = each["args"]["op_name"]
        taken[operator] = taken.get(operator, 0.0) + each["dur"] / 1000 / BY_OPERATOR
    return dict(sorted(taken.items(), key=lambda row: -row[1]))


def library(spec: ModelSpec, path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """`opened_library` as a call."""
    opened = opened_library(spec, path, threads)
    return lambda pixels: next(iter(opened.run({"pixel_values": pixels}).values()))


def openvino(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The graph compiled by OpenVINO for one picture at a time in bfloat16.

    Raises:
        MachineError: OpenVINO is not installed.
    """
    try:
        import openvino as library
    except ImportError as error:
        raise MachineError("openvino is not installed", "the peer named by --peer", "pip install openvino") from error
    options = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = library.Core().compile_model(str(path), "CPU", options)
    return lambda pixels: compiled([pixels])[0]


def measure(calls: dict[str, Callable[[np.ndarray], np.ndarray]], pixels: np.ndarray, rounds: int) -> list[Row]:
    """Every call in turn, ``rounds`` times after a warm one."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    worked: dict[str, list[float]] = {name: [] for name in calls}
    outputs = {name: call(pixels) for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            began, before = time.perf_counter(), time.process_time()
            call(pixels)
            worked[name].append(1000 * (time.process_time() - before))
            taken[name].append(1000 * (time.perf_counter() - began))
    medians = {name: (statistics.median(taken[name]), statistics.median(worked[name])) for name in calls}
    clock, processor = medians[PLAIN]
    worst = {name: float(row_cosines(outputs[PLAIN], output).min()) for name, output in outputs.items()}
    return [
        Row(n, ms, min(taken[n]), ms / clock, work, min(worked[n]), work / processor, worst[n])
        for n, (ms, work) in medians.items()
    ]


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "How long a vision tower takes, by precision, beside other runtimes.")
    made.add_argument("--side", type=int, default=448, help="pixels of the square picture (default 448)")
    made.add_argument("--layers", type=int, default=27, help="blocks of the tower (default 27)")
    made.add_argument("--tiles", type=int, default=1, help="pictures of one call (default 1)")
    made.add_argument("--threads", type=int, default=2, help="threads of every runtime (default 2)")
    made.add_argument("--rounds", type=int, default=5, help="timed calls of every row (default 5)")
    made.add_argument("--precision", action="append", help="of our graphs (default: int8, int8_weights, fp32)")
    made.add_argument("--library", action="store_true", help="the int8 tower as machine code too")
    made.add_argument(
        "--finer", type=int, default=0, metavar="P", help="percent of the layers in a finer form, two more rows"
    )
    made.add_argument("--operators", action="store_true", help="time by operator of the first graph of ours too")
    made.add_argument("--peer", action="append", choices=("openvino",), default=[], help="another runtime, installed")
    made.add_argument("--graphs", type=Path, help="keep the graphs there, 0.4 to 1.7 GB each at 27 layers")
    flags.json_file(made, "write the figures there")
    flags.talk(made)
    return made


def _run(arguments: argparse.Namespace) -> int:
    from export.backends.onnx.record import FINER

    spec = tower(arguments.side, arguments.layers)
    shape = (arguments.tiles, 3, arguments.side // PATCH * PATCH, arguments.side // PATCH * PATCH)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = (arguments.graphs or Path(name)) / f"{arguments.side}_{arguments.layers}"
        precisions = arguments.precision or ["int8", "int8_weights", "fp32"]
        paths = {precision: write(spec, precision, folder) for precision in (PLAIN, *precisions)}
        calls = {precision: onnx_runtime(path, arguments.threads) for precision, path in paths.items()}
        finer = {form.name: spread(spec, arguments.finer, form.name) for form in FINER} if arguments.finer else {}
        for form, forms in finer.items():
            calls[f"int8, {len(forms)} layers {form}"] = onnx_runtime(write(spec, ROUNDED, folder, forms), arguments.threads)
        if arguments.library:
            calls[LIBRARY] = library(spec, write(spec, ROUNDED, folder), arguments.threads)
        if arguments.peer:
            calls[PEER] = openvino(paths[PLAIN], arguments.threads)
        sizes = {precision: path.stat().st_size for precision, path in paths.items()}
        rows = measure(calls, pixels, arguments.rounds)
        operators = by_operator(paths[precisions[0]], arguments.threads, pixels) if arguments.operators else {}
    report: dict[str, Any] = {
        **{key: getattr(arguments, key) for key in ("side", "layers", "tiles", "threads", "rounds")},
        "instructions": describe()["instructions"],
        "graph_bytes": sizes,
        "rows": [asdict(row) for row in rows],
        "operators_ms": operators,
    }
    named = ", ".join(report["instructions"])
    console.out(f"{arguments.side} px, {arguments.layers} layers, {arguments.threads} threads, {named}")
    console.out(
        "| tower | median ms | least | ratio | processor ms | least | ratio | cosine |\n|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        by_clock = f"{row.median_ms:.0f} | {row.least_ms:.0f} | {row.ratio:.2f}"
        worked = f"{row.processor_ms:.0f} | {row.least_processor_ms:.0f} | {row.processor_ratio:.2f}"
        console.out(f"| {row.name} | {by_clock} | {worked} | {row.cosine:.5f} |")
    for name, ms in operators.items():
        console.out(f"{name}: {ms:.1f} ms, {ms / sum(operators.values()):.1%}")
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.vision_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
