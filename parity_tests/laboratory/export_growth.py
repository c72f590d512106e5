"""How an int4 export grows with the depth of the decoder: processor time, peak memory, bytes.

    python -m parity_tests.laboratory.export_growth --layers 10,20,40 [--target cpu] -o FOLDER

Random MiniCPM-V checkpoints, equal but for their depth (`middle_checkpoint` has their sizes), are exported without the check
at the end. Time should grow by a constant a layer, memory not at all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from parity_tests.laboratory.export_and_llama_cpp import measured
from parity_tests.laboratory.middle_checkpoint import SHARD_BYTES, SIZES
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Export random models of several depths and print what each took.")
    made.add_argument("--layers", default="10,20,40", help="depths of the decoder, comma-separated (default 10,20,40)")
    made.add_argument("--target", default="cpu", help="the target (default cpu)")
    made.add_argument("-o", "--output", type=Path, required=True, help="a new working folder; removed at the end")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    given.output.mkdir(parents=True)
    console.out("| layers | parameters | processor seconds | seconds | peak memory | written |\n|---|---|---|---|---|---|")
    for layers in map(int, given.layers.split(",")):
        model, package = given.output / f"layers_{layers}", given.output / "package"
        sizes = SIZES | {"num_hidden_layers": layers}
        made = synthesize(SynthesisRequest("minicpm-v", "tiny", model, shard_bytes=10 * SHARD_BYTES, overrides=sizes))
        command = [sys.executable, "-m", "export", "--model", str(model), "--target", given.target, "--precision", "int4"]
        took = measured([*command, "--skip-verify", "--without-tokenizer", "-q", "-o", str(package)], package)
        cells = f"{took.processor:.1f} | {took.seconds:.1f} | {took.peak / 1e6:.0f} MB | {took.written / 1e6:.0f} MB"
        console.out(f"| {layers} | {made.parameters / 1e6:.0f} M | {cells} |")
        shutil.rmtree(package)
        shutil.rmtree(model)
    given.output.rmdir()
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.export_growth", arguments)


if __name__ == "__main__":
    sys.exit(main())
