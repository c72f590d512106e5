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
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from parity_tests.laboratory.killed_once import KilledOnce
from parity_tests.laboratory.served import Served, served
from parity_tests.laboratory.server_rehearsal import Pairs, asking, resident
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError
from runtime_py.model import load
from runtime_py.serving.client import Client

ANSWERED = ("right", "wrong")


class ServedPackage:
    """`edgeproof serve` over a package, as `killed_once.Killable`."""

    def __init__(self, package: Path) -> None:
        self._package, self._stack = package, contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        """A new server, at another port."""
        self._server: Served = self._stack.enter_context(served(self._package, ["--threads", "1"]))

    def kill(self) -> None:
        """SIGKILL."""
        self._server.process.kill()
        self._server.process.wait()

    def resident(self) -> float:
        """Megabytes of the process."""
        return resident(self._server.process.pid) or 0.0

    def ask(self, pairs: Pairs, pair: int) -> str:
        """``right`` or ``wrong``.

        Raises:
            MachineError: there was no answer.
        """
        said = pairs.ask(Client(self._server.url), self._server.name, pair)
        if said not in ANSWERED:
            raise MachineError(said, "an answer", "ask again once the server is back")
        return said

    def close(self) -> None:
        """End the server."""
        self._stack.close()


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
    order = np.random.default_rng(1).integers(0, len(pairs.pairs), options.requests)
    with contextlib.closing(ServedPackage(Path(options.package))) as server:
        run = KilledOnce(server, options.kill_at)
        began = time.monotonic()
        with asking(options.at_a_time) as threads:
            list(threads.map(lambda pair: run.ask(partial(server.ask, pairs, int(pair))), order))
        seconds = time.monotonic() - began
        faults = run.finish()
    for line in (*run.lines(seconds), *faults):
        console.out(line)
    return int(ExitCode.OK if set(run.outcomes) == {"right"} and not faults else ExitCode.PARITY_FAILED)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.killed_server", arguments)


if __name__ == "__main__":
    sys.exit(main())
