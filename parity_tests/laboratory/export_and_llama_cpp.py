"""Our int4 export and llama.cpp's quantiser on models of the same size, interleaved in one run: seconds and peak memory.

    python -m parity_tests.laboratory.export_and_llama_cpp --model DIR --llama-python PYTHON -o FOLDER [--target
    cpu,android] [--rounds 1]

``--llama-python`` is an interpreter in which ``xllamacpp`` and ``gguf`` can be imported. The other gets a random GGUF in
float16 with as many parameters: our decoder's sizes, and more layers in place of the vision side. It writes Q4_0, we write a
whole package without the check at its end. Both use the threads that OMP_NUM_THREADS says.

xllamacpp's library has llama.cpp's kernels and not the function that quantises a file, so what that does a tensor is called
here in its order (ggml-org/llama.cpp, src/llama-quant.cpp, `llama_tensor_dequantize_impl` and `llama_tensor_quantize_impl`):
float16 to float32, quantising, the check of the rows, each thread a share of the rows; then the bytes are written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

WRITE_GGUF = """
import json, sys, gguf, numpy as np
path, s = sys.argv[1], json.loads(sys.argv[2])
numbers = (np.random.default_rng(0).standard_normal(s["vocabulary"] * s["hidden"], np.float32) * 0.02).astype(np.float16)
w = gguf.GGUFWriter(path, "llama")
w.add_block_count(s["layers"]); w.add_context_length(2048); w.add_embedding_length(s["hidden"])
w.add_feed_forward_length(s["mlp"]); w.add_head_count(s["heads"]); w.add_head_count_kv(s["kv_heads"])
w.add_layer_norm_rms_eps(1e-5); w.add_vocab_size(s["vocabulary"]); w.add_rope_dimension_count(s["hidden"] // s["heads"])
w.add_file_type(1)
def matrix(name, rows, columns): w.add_tensor(name, numbers[: rows * columns].reshape(rows, columns))
def norm(name): w.add_tensor(name, np.ones(s["hidden"], np.float32))
h, m, kv = s["hidden"], s["mlp"], s["hidden"] // s["heads"] * s["kv_heads"]
matrix("token_embd.weight", s["vocabulary"], h); norm("output_norm.weight"); matrix("output.weight", s["vocabulary"], h)
for i in range(s["layers"]):
    b = f"blk.{i}."
    norm(b + "attn_norm.weight"); norm(b + "ffn_norm.weight")
    for name, rows, columns in (("attn_q", h, h), ("attn_k", kv, h), ("attn_v", kv, h), ("attn_output", h, h),
                                ("ffn_gate", m, h), ("ffn_up", m, h), ("ffn_down", h, m)):
        matrix(b + name + ".weight", rows, columns)
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
"""

QUANTISE = """
import ctypes, pathlib, sys, gguf, numpy as np, xllamacpp
from concurrent.futures import ThreadPoolExecutor
source, out, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__path__[0]).glob("*.so"))))
pointer, size, Q4_0 = ctypes.c_void_p, ctypes.c_int64, 2
library.ggml_fp16_to_fp32_row.argtypes = [pointer, pointer, size]
library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
library.ggml_quantize_chunk.restype = ctypes.c_size_t
library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
library.ggml_validate_row_data.restype = ctypes.c_bool
library.ggml_quantize_init(Q4_0)
def share(stored, wide, packed, start, stop):
    columns, row = stored.shape[1], packed.shape[1]
    library.ggml_fp16_to_fp32_row(stored[start:].ctypes.data, wide[start:].ctypes.data, (stop - start) * columns)
    library.ggml_quantize_chunk(Q4_0, wide.ctypes.data, packed.ctypes.data, start * columns, stop - start, columns, None)
    assert library.ggml_validate_row_data(Q4_0, packed[start:].ctypes.data, (stop - start) * row)
room = np.empty(0, np.float32)
with open(out, "wb") as file, ThreadPoolExecutor(threads) as pool:
    for tensor in gguf.GGUFReader(source).tensors:
        stored = tensor.data
        if stored.ndim != 2:
            file.write(stored.tobytes())
            continue
        rows, columns = stored.shape
        room = room if room.size >= stored.size else np.empty(stored.size, np.float32)
        wide, packed = room[: stored.size].reshape(rows, columns), np.empty((rows, columns // 32 * 18), np.uint8)
        cuts = [rows * part // threads for part in range(threads + 1)]
        for done in [pool.submit(share, stored, wide, packed, *cut) for cut in zip(cuts, cuts[1:])]:
            done.result()
        file.write(packed)
"""


@dataclass(frozen=True)
class Measured:
    """One run: wall seconds, processor seconds, peak resident bytes of the largest process, bytes written."""

    seconds: float
    processor: float
    peak: int
    written: int


def measured(command: Sequence[str], written: Path) -> Measured:
    """Run a command in a process that reports its own children.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    began = time.monotonic()
    inner = "import json,resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True,stdout=2);"
    inner += "r=resource.getrusage(resource.RUSAGE_CHILDREN);print(json.dumps([r.ru_utime+r.ru_stime,r.ru_maxrss]))"
    done = subprocess.run([sys.executable, "-c", inner, *command], check=True, capture_output=True)
    processor, peak = json.loads(done.stdout)
    size = sum(f.stat().st_size for f in written.rglob("*") if f.is_file()) if written.is_dir() else written.stat().st_size
    return Measured(time.monotonic() - began, processor, peak * resource_unit(), size)


def resource_unit() -> int:
    """Bytes of a unit of ru_maxrss: 1024, on macOS 1 (getrusage(2))."""
    return 1 if sys.platform == "darwin" else 1024


def same_size(model: Path) -> tuple[dict[str, int], int]:
    """Sizes of a Llama with as many parameters as the checkpoint, and how many those are."""
    from export.checkpoint.opened import open_folder
    from export.modules.build import parameter_count

    spec = open_folder(model).spec
    total = parameter_count(spec)
    d = spec.decoder
    layer = d.hidden * (2 * d.heads + 2 * d.kv_heads) * d.head_dim + 3 * d.hidden * d.mlp_width
    layers = round((total - 2 * d.vocabulary * d.hidden) / layer)
    sizes = {"hidden": d.hidden, "mlp": d.mlp_width, "heads": d.heads, "kv_heads": d.kv_heads}
    return {**sizes, "vocabulary": d.vocabulary, "layers": layers}, total


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time against llama.cpp's quantiser.")
    made.add_argument("--model", type=Path, required=True, help="a checkpoint folder")
    made.add_argument("--llama-python", required=True, help="interpreter with xllamacpp and gguf")
    made.add_argument("--target", default="cpu,android", help="our targets, comma-separated")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("-o", "--output", type=Path, required=True, help="a working folder; what is written there is removed")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    given.output.mkdir(parents=True, exist_ok=True)
    sizes, parameters = same_size(given.model)
    source, quantised, package = (given.output / name for name in ("source.gguf", "q4_0.gguf", "package"))
    subprocess.run([given.llama_python, "-c", WRITE_GGUF, str(source), json.dumps(sizes)], check=True)
    export = [sys.executable, "-m", "export", "--model", str(given.model), "--precision", "int4", "--skip-verify", "-q"]
    commands = {"llama.cpp Q4_0": ([given.llama_python, "-c", QUANTISE, str(source), str(quantised), threads], quantised)}
    for target in given.target.split(","):
        commands[f"edgeproof {target}"] = ([*export, "--without-tokenizer", "--target", target, "-o", str(package)], package)
    rows: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(given.rounds):
        for name, (command, written) in commands.items():
            shutil.rmtree(package, ignore_errors=True)
            quantised.unlink(missing_ok=True)
            rows[name].append(measured(command, written))
    shutil.rmtree(given.output)
    sys.stdout.write(f"{parameters / 1e9:.2f} B parameters, {threads} thread(s), medians of {given.rounds} round(s)\n\n")
    sys.stdout.write(
        "| | seconds | processor seconds | peak memory | written | seconds by llama.cpp's | processor seconds by its |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    clock, processor = _medians(rows["llama.cpp Q4_0"])
    for name, runs in rows.items():
        seconds, busy = _medians(runs)
        peak, size = max(run.peak for run in runs) / 1e9, runs[0].written / 1e9
        cells = (
            f"{seconds:.0f} | {busy:.0f} | {peak:.2f} GB | {size:.2f} GB | {seconds / clock:.2f} | {busy / processor:.2f}"
        )
        sys.stdout.write(f"| {name} | {cells} |\n")
    return 0


def _medians(runs: Sequence[Measured]) -> tuple[float, float]:
    """Seconds and processor seconds."""
    return statistics.median(run.seconds for run in runs), statistics.median(run.processor for run in runs)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.export_and_llama_cpp", arguments)


if __name__ == "__main__":
    sys.exit(main())
