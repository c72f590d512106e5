"""Compile a family's phone library and this machine's in turn and at once: clock, processor time, memory, and equal bytes.

    python -m parity_tests.laboratory.compile_at_once [--model minicpm-v] [--size full] [--target android] [--layers N]

Exit code 0 when both ways give the same bytes, 5 when they do not. Memory is the proportional share (PSS) of this process
and of the compilers, summed, at its highest of one look every half second.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil

from export.backends.mlc.compile_process import compile_together
from export.compilation.host import host_place
from parity_tests.laboratory.mlc_traffic.libraries import request_of, spec_of
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

LOOK_SECONDS = 0.5


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Compile two libraries in turn and at once, and compare time, memory and bytes.")
    made.add_argument("--model", default="minicpm-v", help="a family's name")
    made.add_argument("--size", default="full", choices=("full", "tiny"), help="published or demo shape")
    made.add_argument("--target", default="android", choices=("android", "ios"))
    made.add_argument("--layers", type=flags.whole_number(1), default=0, metavar="N", help="only so many; default all")
    made.add_argument("--way", default="in turn,at once", metavar="LIST", help="of: in turn, at once")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    request = request_of(spec_of(options.model, options.size, options.layers), options.target)
    places, seen = (options.target, host_place()), []
    for way in options.way.split(","):
        with tempfile.TemporaryDirectory(prefix="compile-at-once-") as folder, watched() as peak:
            outs = {place: Path(folder) / f"{place}.{'so' if place == host_place() else 'tar'}" for place in places}
            clock, used = time.monotonic(), _children()
            for group in [places] if way == "at once" else [(place,) for place in places]:
                compile_together(request, {place: outs[place] for place in group})
            clock, used = time.monotonic() - clock, _children() - used
            hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in outs.values()]
        seen.append(hashes)
        told = ", ".join(f"{place} {digest[:12]}" for place, digest in zip(places, hashes, strict=True))
        console.out(f"{way}: {clock:.1f} s, {used:.1f} s of processor time, {peak[0] >> 20} MiB; {told}")
    return ExitCode.OK if all(hashes == seen[0] for hashes in seen) else ExitCode.PARITY_FAILED


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def watched() -> Iterator[list[int]]:
    """The largest memory seen so far, as the one item of a list."""
    peak, done = [0], Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            own = psutil.Process()
            peak[0] = max(peak[0], sum(_share(process) for process in (own, *own.children(recursive=True))))

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _share(process: psutil.Process) -> int:
    """Proportional bytes of a process; 0 when it is gone."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each way; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.compile_at_once", arguments)


if __name__ == "__main__":
    sys.exit(main())
