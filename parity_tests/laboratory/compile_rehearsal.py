"""Make one package many times, in other folders, environments and loads, and compare every byte.

    python -m parity_tests.laboratory.compile_rehearsal [--model minicpm-v] [--target android] [--times 20] -o FOLDER

Each run has another output path and working folder, other environment variables, another hash seed and number of threads;
every second one shares the machine with a program that computes. Exit code 0 when all runs give the same bytes, 5 when one
does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from parity_tests.laboratory.file_hashes import hashes
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Make one package many times under other circumstances, and compare every byte.")
    made.add_argument("--model", default="minicpm-v", help="a family's alias, exported with its demo weights")
    made.add_argument("--target", default="android")
    made.add_argument("--times", type=flags.whole_number(2), default=20, metavar="N", help="runs; default 20")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder to work in")
    flags.talk(made)
    return made


def circumstances(number: int, folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """Output, working folder and environment of a run."""
    draw = Random(number)
    place = folder / ("x" * draw.randint(1, 60)) / str(number)
    work = place / ("work" * draw.randint(1, 9))
    temporary = place / "tmp"
    for path in (work, temporary):
        path.mkdir(parents=True)
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "EDGEPROOF_TRUST") if name in os.environ}
    drawn = {f"DRAWN_{index}": "v" * draw.randint(0, 3000) for index in range(draw.randint(0, 40))}
    chosen = {
        "PYTHONPATH": str(ROOT),
        "HOME": str(place),
        "TMPDIR": str(temporary),
        "PYTHONHASHSEED": str(draw.randint(0, 10**6)),
        "OMP_NUM_THREADS": str(draw.choice((1, 2, 4))),
        "TVM_NUM_THREADS": str(draw.choice((1, 2, 4))),
        "MALLOC_ARENA_MAX": str(draw.choice((1, 2, 8))),
        "LANG": draw.choice(("C", "C.UTF-8", "de_DE.UTF-8")),
    }
    return place / f"out-{number}", work, {**kept, **drawn, **chosen}


@contextmanager
def load(wanted: bool) -> Iterator[None]:
    """A program that computes beside the run, where it is wanted."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]) as busy:
        try:
            yield
        finally:
            busy.kill()


def _run(options: argparse.Namespace) -> int:
    if options.output.exists():
        raise UsageError(f"{options.output} exists", "a new folder", "choose another -o")
    first: dict[str, str] = {}
    different: set[str] = set()
    for number in range(options.times):
        began = time.monotonic()
        output, work, environment = circumstances(number, options.output.resolve())
        command = [sys.executable, "-m", "export", "--model", options.model, "--weights", "demo", "--target", options.target]
        with load(number % 2 == 1):
            done = subprocess.run(
                [*command, "--skip-verify", "-q", "-o", str(output)],
                cwd=work, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            raise MachineError(f"run {number} ended with {done.returncode}: {done.stderr[-500:]}", "0", "mend that first")
        after = hashes(output)
        first = first or after
        wrong = sorted(path for path in first.keys() | after.keys() if first.get(path) != after.get(path))
        different |= set(wrong)
        console.out(
            f"run {number + 1} of {options.times}: {len(after)} files, {len(wrong)} differ, {time.monotonic() - began:.0f} s"
        )
        shutil.rmtree(output)
    for path in sorted(different):
        console.out(f"differs: {path}")
    libraries = {path: digest[:16] for path, digest in first.items() if path.endswith((".tar", ".so"))}
    console.out(f"{options.times} runs, {len(different)} files differ; {libraries}")
    return int(ExitCode.PARITY_FAILED if different else ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.compile_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
