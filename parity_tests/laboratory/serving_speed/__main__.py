"""Our server and llama.cpp's on a model of the same size, in turn in one run: tokens per second alone and many at a time.

    python -m parity_tests.laboratory.serving_speed --model CHECKPOINT --package PACKAGE --llama-python PYTHON
        [--threads 2] [--rounds 3] [--at-a-time 8] [--requests 16] [--new-tokens 128]

The checkpoint is a MiniCPM-V 1.0 of any size (`python -m parity_tests.laboratory.middle_checkpoint --size half` writes one
whose decoder has half a billion weights), the package its cpu export at int4. ``--llama-python`` is an interpreter with
xllamacpp, gguf and NumPy (``--llama-server`` names a llama-server of one's own instead of xllamacpp's); for it a random
decoder of the same sizes is written in Q4_0 and a tower of the same sizes in Q8_0. Both servers run all the time, with the
same threads, slots and context; one is asked, then the other. Every request brings a picture of its own and is answered
with as many tokens. Each server warms up with a request a slot. ``others`` is how much of a processor other programs took
meanwhile: where it is not near 0 the figures are worth little.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_tests.laboratory.process_end import end
from parity_tests.laboratory.served import served
from parity_tests.laboratory.serving_speed.gguf_files import gguf_files
from parity_tests.laboratory.serving_speed.machine import Watch
from parity_tests.laboratory.serving_speed.sizes import sizes_of
from runtime_py.command import console, flags
from runtime_py.command.bench_server import Load, measure
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import MachineError
from runtime_py.package import read

HERE = Path(__file__).parent
OURS, THEIRS = "edgeproof", "llama.cpp"


@dataclass(frozen=True)
class Level:
    """What one server did with so many requests at a time, and how much of a processor others took meanwhile."""

    server: str
    at_a_time: int
    figures: dict[str, Any]
    others: float


@dataclass(frozen=True)
class Server:
    """Where it listens, and its process."""

    url: str
    process: int


@contextlib.contextmanager
def llama(
    python: str, program: str | None, files: Sequence[Path], threads: int, slots: int, context: int
) -> Iterator[Server]:
    """llama.cpp's server over a decoder and a tower (`gguf_files`): that of xllamacpp, or a program.

    Raises:
        MachineError: it does not start.
    """
    numbers = [str(number) for number in (threads, slots, context)]
    command = [python, str(HERE / "llama_server.py"), *map(str, files), *numbers, *([program] if program else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            url, built, number = (process.stdout.readline().strip() for _ in range(3))
            if not number:
                raise MachineError("llama.cpp's server did not start", "one that does", "run llama_server.py by hand")
            console.out(f"{THEIRS}: {built}")
            yield Server(url, int(number))
        finally:
            end(process)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Our server beside llama.cpp's.")
    made.add_argument("--model", type=Path, required=True, metavar="DIR", help="the checkpoint")
    made.add_argument("--package", type=Path, required=True, metavar="DIR", help="its cpu export")
    made.add_argument("--llama-python", metavar="PYTHON", help="interpreter with xllamacpp and gguf; ours alone without it")
    made.add_argument("--llama-server", metavar="FILE", help="llama.cpp's own program instead of xllamacpp")
    made.add_argument("--threads", type=flags.whole_number(1), default=2, metavar="N", help="of either server")
    made.add_argument("--rounds", type=flags.whole_number(1), default=3, metavar="N")
    made.add_argument("--at-a-time", type=flags.whole_number(2), default=8, metavar="N", help="beside one at a time")
    made.add_argument("--requests", type=flags.whole_number(1), default=16, metavar="N", help="at a time; a quarter alone")
    made.add_argument("--new-tokens", type=flags.whole_number(1), default=128, metavar="N", help="of each answer")
    made.add_argument("--text", action="store_true", help="ask without pictures, to hold the decoders alone side by side")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    sizes = sizes_of(given.model, read(given.package).limits.context)
    arguments = ["--threads", str(given.threads), "--slots", str(given.at_a_time)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeproof-serving-speed-")))
        servers: dict[str, Server] = {}
        if given.llama_python:
            files = gguf_files(Path(given.llama_python), given.model, sizes["context"], folder)
            numbers = given.threads, given.at_a_time, sizes["context"]
            server = llama(given.llama_python, given.llama_server, files, *numbers)
            servers[THEIRS] = stack.enter_context(server)
        own = stack.enter_context(served(given.package, arguments))
        servers[OURS] = Server(own.url, own.process.pid)
        levels = _measured(given, servers, 0 if given.text else sizes["side"])
    about = "no picture" if given.text else "a picture of its own"
    console.out(
        f"{given.threads} thread(s); {given.new_tokens} tokens an answer, each about {about}, {given.rounds} round(s)"
    )
    console.out("\n".join(lines(levels, given.at_a_time)))
    return 0


def _measured(given: argparse.Namespace, servers: dict[str, Server], side: int) -> list[Level]:
    levels, picture = [], 1
    for server in servers.values():  # the first answer of a slot takes its memory
        measure(Load(server.url, None, (given.at_a_time,), given.at_a_time, 2, side, picture))
        picture += given.at_a_time + 1
    for _ in range(given.rounds):
        for name, server in servers.items():
            for count, requests in ((1, max(given.requests // 4, 1)), (given.at_a_time, given.requests)):
                load = Load(server.url, None, (count,), requests, given.new_tokens, side, picture)
                picture += requests + 1
                watch = Watch([server.process])
                figures = measure(load)["levels"][0]
                levels.append(Level(name, count, figures, watch.others()))
                console.say(
                    f"{name}, {count} at a time: {figures['tokens_per_second']:.1f} tokens/s, others {levels[-1].others:.2f}"
                )
    return levels


def lines(levels: Sequence[Level], many: int) -> list[str]:
    """A table of medians over the rounds, and the ratios."""
    rows = [
        "",
        "| server | at a time | tokens/s | first token p95, s | next token p95, s | beside decoder | others, processors |",
        "|---|---|---|---|---|---|---|",
    ]
    rate: dict[tuple[str, int], float] = {}
    for key in dict.fromkeys((level.server, level.at_a_time) for level in levels):
        runs = [level for level in levels if (level.server, level.at_a_time) == key]
        rate[key] = statistics.median(run.figures["tokens_per_second"] for run in runs)
        first, following = (
            statistics.median(run.figures[name]["p95"] for run in runs)
            for name in ("first_token_seconds", "inter_token_seconds")
        )
        own = [run.figures["beside_the_decoder"] for run in runs if run.figures["beside_the_decoder"] is not None]
        share, others = f"{statistics.median(own):.1%}" if own else "-", max(run.others for run in runs)
        rows.append(f"| {key[0]} | {key[1]} | {rate[key]:.1f} | {first:.2f} | {following:.3f} | {share} | {others:.2f} |")
    for name, one, other in (
        (f"{OURS}, {many} at a time over one", (OURS, many), (OURS, 1)),
        (f"{OURS} over {THEIRS}, one at a time", (OURS, 1), (THEIRS, 1)),
        (f"{OURS} over {THEIRS}, {many} at a time", (OURS, many), (THEIRS, many)),
    ):
        if one in rate and other in rate:
            rows.append(f"{name}: {rate[one] / rate[other]:.2f} times the tokens/s")
    return rows


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.serving_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
