"""Our int4 export and llama.cpp's quantiser on models of the same size, interleaved in one run: seconds and peak memory.

    python -m parity_tests.laboratory.export_and_llama_cpp --model DIR --llama-python PYTHON -o FOLDER [--target
    cpu,android] [--rounds 1]

``--llama-python`` is an interpreter in which ``xllamacpp`` and ``gguf`` can be imported. The other gets a random GGUF in
float16 with as many parameters: our decoder's sizes, and more layers in place of the vision side. It writes Q4_0
(`llama_quantiser`), we write a whole package without the check at its end. Both use the threads that OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_tests.laboratory.child_usage import usage_of
from parity_tests.laboratory.serving_speed import gguf_files
from parity_tests.laboratory.serving_speed.sizes import decoder_sizes
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

QUANTISER = Path(__file__).parent / "llama_quantiser.py"


@dataclass(frozen=True)
class Measured:
    """One run: wall seconds, processor seconds, peak resident bytes of the largest process, bytes written."""

    seconds: float
    processor: float
    peak: int
    written: int


def measured(command: Sequence[str], written: Path) -> Measured:
    """Run a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    used = usage_of(command)
    if used.code:
        raise subprocess.CalledProcessError(used.code, command, stderr=used.errors)
    size = sum(f.stat().st_size for f in written.rglob("*") if f.is_file()) if written.is_dir() else written.stat().st_size
    return Measured(used.seconds, used.processor, used.peak, size)


def same_size(model: Path) -> tuple[dict[str, int], int]:
    """Sizes of a Llama with as many parameters as the checkpoint, and how many those are."""
    from export.checkpoint.opened import open_folder
    from export.modules.build import parameter_count

    spec = open_folder(model).spec
    total = parameter_count(spec)
    d, sizes = spec.decoder, decoder_sizes(spec.decoder)
    layer = d.hidden * (2 * d.heads + 2 * d.kv_heads) * d.head_dim + 3 * d.hidden * d.mlp_width
    return {**sizes, "layers": round((total - 2 * d.vocabulary * d.hidden) / layer)}, total


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
    given_sizes = given.output / "sizes.json"
    given_sizes.write_text(json.dumps({**sizes, "context": 2048, "matrices": "F16"}), encoding="utf-8")
    subprocess.run([given.llama_python, str(gguf_files.WRITER), str(given_sizes), str(source)], check=True)
    os.sync()  # else the first to be measured shares the machine with the writing of that file
    export = [sys.executable, "-m", "export", "--model", str(given.model), "--precision", "int4", "--skip-verify", "-q"]
    commands = {"llama.cpp Q4_0": ([given.llama_python, str(QUANTISER), str(source), str(quantised), threads], quantised)}
    for target in given.target.split(","):
        commands[f"edgeproof {target}"] = ([*export, "--without-tokenizer", "--target", target, "-o", str(package)], package)
    rows: dict[str, list[Measured]] = {name: [] for name in commands}
    for _ in range(given.rounds):
        for name, (command, written) in commands.items():
            shutil.rmtree(package, ignore_errors=True)
            quantised.unlink(missing_ok=True)
            rows[name].append(measured(command, written))
            run = rows[name][-1]
            sys.stderr.write(f"{name}: {run.seconds:.1f} s, {run.processor:.1f} processor s, {run.peak / 1e9:.2f} GB\n")
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
