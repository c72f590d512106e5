"""Ask `edgeproof serve` streamed questions with pictures, kill it in between with SIGKILL, and start it again.

    python -m parity_tests.laboratory.killed_server --package DIR [--requests 1000] [--at-a-time 8] [--kill-at 500]

Questions, pictures and right answers are those of `server_rehearsal`. Requests that were at work when the server was killed
must end with an error, and are asked anew when it is back. Memory is read after each hundred answers, before the kill and
after it apart. Exit code 0 when every answer is right, and the kill cut requests off and was followed by a restart.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parity_tests.laboratory.served import Served, served
from parity_tests.laboratory.server_rehearsal import HUNDRED, Pairs, asking, resident
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.model import load
from runtime_py.serving.client import Client

TRIES = 5
ANSWERED = ("right", "wrong")


@dataclass
class Killed:
    """A server that is killed after so many answers.

    Attributes:
        told: what clients were told that were cut off, and how often.
        memory: megabytes after each hundred answers, of the first server and of the one after it.
    """

    package: Path
    pairs: Pairs
    kill_at: int
    outcomes: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    memory: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def __post_init__(self) -> None:
        self._lock, self._up = threading.Lock(), threading.Event()
        self._stack = contextlib.ExitStack()
        self._killing: threading.Thread | None = None
        self._server: Served | None = None
        self._start()

    def ask(self, pair: int) -> None:
        """One question, asked again where it was cut off."""
        for _ in range(TRIES):
            self._up.wait()
            server = self._server
            if server is None:
                break
            said = self.pairs.ask(Client(server.url), server.name, pair)
            if said in ANSWERED:
                self._done(said)
                return
            with self._lock:
                self.told[said] += 1
        self._done("lost")

    def finish(self) -> str:
        """What is wrong beside the answers, "" where nothing is; ends the server."""
        if self._killing is not None:
            self._killing.join()
        self._stack.close()
        if self._killing is None:
            return "the server was not killed"
        return "" if self._server is not None and self.told else "it was not started again, or the kill cut nothing off"

    def _start(self) -> None:
        self._server = self._stack.enter_context(served(self.package, ["--threads", "1"]))
        self._up.set()

    def _done(self, said: str) -> None:
        with self._lock:
            self.outcomes[said] += 1
            count = sum(self.outcomes.values())
            if count % HUNDRED == 0 and self._server is not None:
                self.memory[self._killing is not None].append(resident(self._server.process.pid) or 0.0)
            if count == self.kill_at:
                self._up.clear()
                self._killing = threading.Thread(target=self._kill)
                self._killing.start()

    def _kill(self) -> None:
        assert self._server is not None
        process, self._server = self._server.process, None
        process.kill()
        try:
            process.wait()
            self._start()
        finally:
            self._up.set()


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Kill a server in the middle of many requests, and hold each answer against the package's own.")
    flags.package(made)
    made.add_argument("--requests", type=flags.whole_number(1), default=1000, metavar="N", help="default 1000")
    made.add_argument("--at-a-time", type=flags.whole_number(1), default=8, metavar="N", help="default 8")
    made.add_argument("--kill-at", type=flags.whole_number(1), default=500, metavar="N", help="answers; default 500")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    with load(options.package, threads=1) as model:
        pairs = Pairs(model)
    rehearsal = Killed(Path(options.package), pairs, options.kill_at)
    order = np.random.default_rng(1).integers(0, len(pairs.pairs), options.requests)
    began = time.monotonic()
    try:
        with asking(options.at_a_time) as threads:
            list(threads.map(lambda pair: rehearsal.ask(int(pair)), order))
    finally:
        problem = rehearsal.finish()
    counts = ", ".join(f"{count} {what}" for what, count in sorted(rehearsal.outcomes.items()))
    console.out(f"{options.requests} answers in {time.monotonic() - began:.0f} s over a SIGKILL: {counts}")
    for said, count in rehearsal.told.most_common():
        console.out(f"cut off and asked again: {count}, told: {said}")
    for when, held in zip(("before", "after"), rehearsal.memory, strict=True):
        if len(held) > 2:
            slope = np.polyfit(np.arange(len(held) - 1), held[1:], 1)[0]
            console.out(f"memory {when} it, MB: {', '.join(f'{one:.1f}' for one in held)}; {slope:+.2f} MB a hundred")
    if problem:
        console.out(problem)
    return int(ExitCode.OK if set(rehearsal.outcomes) == {"right"} and not problem else ExitCode.PARITY_FAILED)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.killed_server", arguments)


if __name__ == "__main__":
    sys.exit(main())
