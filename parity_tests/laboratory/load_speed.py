r"""How long a package's stages take to open in ONNX Runtime, and what stays in memory, each way in a process of its own.

    python -m parity_tests.laboratory.load_speed --package DIR [--rounds 3] [--copies FOLDER] \
        [--llama-python PYTHON --model CHECKPOINT --gguf FOLDER]

``in turn`` opens one stage after the other, ``side by side`` all at once, each packing its matrices on one core; ``as
loaded`` is what `runtime_py.backends.ort.OrtBackend.load` does, and ``decoder as loaded`` that stage of it alone. With
``--copies`` every stage is first written there as ONNX Runtime has optimised it, its packed matrices in the file
(session.save_external_prepacked_constant_initializers), and ``packed copies`` opens these side by side: such a copy holds
for one version of ONNX Runtime on one kind of processor. ``unpacked`` opens the package with no matrix packed
(session.disable_prepacking), the least that any packing ahead could leave. llama.cpp (of xllamacpp) opens files of the
checkpoint's sizes, which are written unless the folder has them: its library the decoder, and its server all
(parity_tests/laboratory/serving_speed/llama_load.py). Files are read once before, so that all are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from parity_tests.laboratory.serving_speed.gguf_files import gguf_files
from runtime_py import package
from runtime_py.backends.onnx_files import stage_files
from runtime_py.backends.ort import OrtBackend
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER

IN_TURN, BESIDE, COPIES, UNPACKED = "in turn", "side by side", "packed copies", "unpacked"
LOADED, LOADED_DECODER = "as loaded", "decoder as loaded"
LLAMA_LIBRARY, LLAMA_CONTEXT = "llama.cpp's library, decoder", "the same and a context"
LLAMA_SERVER = "llama.cpp's server, all and a context"
LLAMA_LOAD = Path(__file__).parent / "serving_speed" / "llama_load.py"
SAVED = "session.save_external_prepacked_constant_initializers"
COPY, DATA = "copy.onnx", "copy.data"
PIECE = 1 << 24
KINDS = ("VmRSS", "RssAnon", "RssFile", "VmHWM")


def open_stages(paths: Sequence[Path], threads: int, way: str, copies: Path | None = None) -> dict[str, float]:
    """Open the graphs in this process.

    Args:
        paths: the graphs; for what is ``as loaded`` the package alone.
        copies: write each graph's optimised form into a folder of its name there.

    Returns:
        seconds by the clock and of the processor, and bytes resident: all, anonymous, of files, and the most there were.
    """
    import resource
    import time

    import onnxruntime

    def opened(path: Path) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if way == UNPACKED:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if path.name == COPY:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if copies is not None:
            folder = copies / path.stem
            folder.mkdir(parents=True, exist_ok=True)
            options.optimized_model_filepath = str(folder / COPY)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA)
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            options.add_session_config_entry(SAVED, "1")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def loaded() -> Any:
        source = package.read(paths[0])
        backend = OrtBackend(source.folder, source.manifest, threads=threads)
        if way == LOADED_DECODER:
            backend.files = {DECODER: backend.files[DECODER]}
        backend.load()
        return backend

    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if way in (LOADED, LOADED_DECODER):
        sessions = loaded()
    else:
        with ThreadPoolExecutor(1 if way == IN_TURN else len(paths)) as openers:
            sessions = list(openers.map(opened, paths))
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {key: float(status[key].split()[0]) * 1024 for key in KINDS}
    del sessions
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor": processor, **sizes}


def _apart(paths: Sequence[Path], threads: int, way: str, copies: Path | None = None) -> dict[str, float]:
    """`open_stages` in a process of its own."""
    asked = json.dumps([[str(path) for path in paths], threads, way, str(copies) if copies else None])
    command = [sys.executable, "-m", "parity_tests.laboratory.load_speed", "--package", ".", "--here", asked]
    return _figures(command)


def _figures(command: Sequence[str]) -> dict[str, float]:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(said.splitlines()[-1])
    return figures


def read_through(path: Path) -> None:
    """Bring a file into the system's cache."""
    with path.open("rb") as file:
        while file.read(PIECE):
            pass


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "How long a package's stages take to open, and what stays in memory.")
    made.add_argument("--package", type=Path, required=True, help="a package with ONNX graphs")
    made.add_argument("--rounds", type=int, default=3, help="openings of every kind, in turn (default 3)")
    made.add_argument("--threads", type=int, default=2, help="threads of every runtime (default 2)")
    made.add_argument("--copies", type=Path, help="also packed copies, written there: 2 to 3 times the package")
    made.add_argument("--llama-python", type=Path, help="an interpreter with xllamacpp, gguf and NumPy")
    made.add_argument("--model", type=Path, help="the package's checkpoint, a MiniCPM-V 1.0: its sizes for llama.cpp")
    made.add_argument("--gguf", type=Path, help="a folder for files of these sizes; those there are used")
    made.add_argument("--here", help=argparse.SUPPRESS)
    flags.json_file(made, "write the figures there")
    flags.talk(made)
    return made


def _run(arguments: argparse.Namespace) -> int:
    if arguments.here:
        names, threads, way, copies = json.loads(arguments.here)
        console.out(json.dumps(open_stages([Path(name) for name in names], threads, way, Path(copies) if copies else None)))
        return 0
    opened = package.read(arguments.package)
    paths = [opened.folder / file for file in stage_files(opened.folder, opened.manifest).values()]
    for path in opened.folder.glob("onnx/*"):
        read_through(path)
    threads = arguments.threads
    ways: dict[str, Callable[[], dict[str, float]]]
    ways = {way: partial(_apart, paths, threads, way) for way in (IN_TURN, BESIDE, UNPACKED)}
    ways |= {way: partial(_apart, [opened.folder], threads, way) for way in (LOADED, LOADED_DECODER)}
    if arguments.copies:
        _apart(paths, threads, BESIDE, arguments.copies)
        copies = [arguments.copies / path.stem / COPY for path in paths]
        ways[COPIES] = partial(_apart, copies, threads, COPIES)
    if arguments.llama_python and arguments.model and arguments.gguf:
        context = opened.limits.context
        files = gguf_files(arguments.llama_python, arguments.model, context, arguments.gguf)
        for path in files:
            read_through(path)
        run = [str(arguments.llama_python), str(LLAMA_LOAD)]
        ways[LLAMA_LIBRARY] = partial(_figures, [*run, "library", str(files[0])])
        ways[LLAMA_CONTEXT] = partial(_figures, [*run, "library", str(files[0]), str(context)])
        ways[LLAMA_SERVER] = partial(_figures, [*run, "server", *map(str, files), str(threads), str(context)])
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, figures in ways.items():
            taken[way].append(figures())
    size = sum(path.stat().st_size for path in opened.folder.glob("onnx/*"))
    rows = {way: {key: statistics.median(row[key] for row in each) for key in each[0]} for way, each in taken.items()}
    console.out(f"ONNX files {size / 1e9:.2f} GB, {threads} threads, medians of {arguments.rounds} rounds (least)")
    console.out(
        "| way | seconds | processor | resident GB | anonymous | of files | at most |\n|---|---|---|---|---|---|---|"
    )
    for way, row in rows.items():
        least = min(each["seconds"] for each in taken[way])
        sizes = " | ".join(f"{row[kind] / 1e9:.2f}" for kind in KINDS)
        console.out(f"| {way} | {row['seconds']:.2f} ({least:.2f}) | {row['processor']:.2f} | {sizes} |")
    if arguments.json_file:
        arguments.json_file.write_text(json.dumps({"onnx_bytes": size, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.load_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
