"""Start the real tritonserver over a repository, ask it streamed questions with pictures through gRPC, kill it in between.

    EDGEPROOF_TRITON=ENV PYTHONPATH=. ENV/bin/python -m parity_tests.laboratory.triton_rehearsal REPOSITORY
        [--requests 1000] [--at-a-time 8] [--kill-at 500]

Questions and pictures are drawn from a few dozen pairs, whose answers the package gives alone first; every response must
carry its own request's number. After ``--kill-at`` answers the server gets SIGKILL and is started again: the requests that
were at work must end with an error, and are asked anew. Exit code 0 when every answer is right, and the kill, where there
was to be one, cut requests off and was followed by a restart.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from export.triton.layout import models_in
from parity_tests.laboratory.killed_once import KilledOnce
from parity_tests.laboratory.server_rehearsal import NEW_TOKENS, Pairs
from parity_tests.triton.client import GrpcStream
from parity_tests.triton.process import VARIABLE, TritonProcess, environment
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError
from runtime_py.model import load

SAMPLING = {"max_tokens": NEW_TOKENS, "temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}


class Asker:
    """Questions through one stream of gRPC a thread.

    Attributes:
        first: seconds to the first response of each answer.
    """

    def __init__(self, server: TritonProcess, model: str, pairs: Pairs) -> None:
        self.server, self.model, self.pairs = server, model, pairs
        self.first: list[float] = []
        self._pngs = [_png(picture) for picture in pairs.pictures]
        self._local = threading.local()

    def ask(self, number: int, pair: int) -> str:
        """``right``, ``wrong`` or ``mixed up``.

        Raises:
            MachineError: the stream broke off.
        """
        try:
            return self._once(number, pair)
        except MachineError:
            stream = getattr(self._local, "stream", None)  # None where it could not be opened
            if stream is not None:
                stream.close()
            self._local.stream = None
            raise

    def _once(self, number: int, pair: int) -> str:
        if getattr(self._local, "stream", None) is None:
            self._local.stream = GrpcStream(f"127.0.0.1:{self.server.ports[1]}", self.model)
        text, picture = self.pairs.pairs[pair]
        said, began = "", time.perf_counter()
        for place, piece in enumerate(self._local.stream.ask(str(number), text, [self._pngs[picture]], SAMPLING)):
            if place == 0:
                self.first.append(time.perf_counter() - began)
            if piece.request != str(number):
                return "mixed up"
            said += piece.text
        return "right" if said == self.pairs.alone[pair] else "wrong"


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Ask a real Triton server many questions at a time, and kill it in between.")
    made.add_argument("repository", type=Path, metavar="REPOSITORY", help="a model repository of edgeproof; its first model")
    made.add_argument("--requests", type=flags.whole_number(1), default=1000, metavar="N", help="default 1000")
    made.add_argument("--at-a-time", type=flags.whole_number(1), default=8, metavar="N", help="default 8")
    made.add_argument("--kill-at", type=flags.whole_number(0), default=500, metavar="N", help="0 never; default 500")
    flags.talk(made)
    return made


def _run(options: object) -> int:
    repository, requests = options.repository.absolute(), options.requests  # type: ignore[attr-defined]
    here, models = environment(), models_in(repository)
    if here is None or not models:
        raise UsageError("no server, or no model", f"{VARIABLE} and a repository", "see parity_tests/triton/process.py")
    with load(models[0].package, threads=1, trust=True) as model:
        pairs = Pairs(model)
    with tempfile.TemporaryDirectory() as workshop:
        server = TritonProcess(here, repository, Path(workshop))
        server.start()
        try:
            asker, run = Asker(server, models[0].name, pairs), KilledOnce(server, options.kill_at)  # type: ignore[attr-defined]
            order = np.random.default_rng(1).integers(0, len(pairs.pairs), requests)
            began = time.monotonic()
            with ThreadPoolExecutor(options.at_a_time) as threads:  # type: ignore[attr-defined]
                list(threads.map(lambda row: run.ask(partial(asker.ask, *row)), enumerate(int(pair) for pair in order)))
            seconds = time.monotonic() - began
            faults = run.finish()
            for line in (*run.lines(seconds), *faults):
                console.out(line)
            if asker.first:
                middle, late = np.percentile(asker.first, (50, 95))
                console.out(f"first response, s: median {middle:.3f}, 95th percentile {late:.3f}")
            if not run.unstarted:
                console.out(f"SIGTERM: exit code {server.stop()}")
        finally:
            server.kill()
    return int(ExitCode.OK if set(run.outcomes) == {"right"} and not faults else ExitCode.PARITY_FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(Command(parser, _run), "python -m parity_tests.laboratory.triton_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
