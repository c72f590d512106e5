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
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from export.triton.layout import models_in
from parity_tests.laboratory.server_rehearsal import HUNDRED, NEW_TOKENS, Pairs
from parity_tests.triton.client import GrpcStream
from parity_tests.triton.process import VARIABLE, TritonProcess, environment
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError
from runtime_py.model import load

SAMPLING = {"max_tokens": NEW_TOKENS, "temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}
TRIES = 5


@dataclass
class Rehearsal:
    """What is asked, and what came of it.

    Attributes:
        errors: of requests that were asked again, in the client's words; ``cut_off`` of them came after the kill.
        unstarted: why the server did not start again; empty where it did.
        memory: megabytes after each hundred answers; ``restarted`` is how many of them were before the kill.
    """

    server: TritonProcess
    model: str
    pairs: Pairs
    kill_at: int
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    restarted: int = 0
    cut_off: int = 0
    unstarted: str = ""

    def __post_init__(self) -> None:
        self._pngs = [_png(picture) for picture in self.pairs.pictures]
        self._local = threading.local()
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._up.set()
        self._killing: threading.Thread | None = None

    def ask(self, number: int, pair: int) -> None:
        """One question, asked again when the server was killed under it."""
        for _ in range(TRIES):
            self._up.wait()
            try:
                said = self._once(number, pair)
            except MachineError as error:
                stream = getattr(self._local, "stream", None)  # None where it could not be opened
                if stream is not None:
                    stream.close()
                self._local.stream = None
                with self._lock:
                    self.errors.append(error.what)
                    self.cut_off += self._killing is not None
                time.sleep(0.2)
                continue
            self._done(said)
            return
        self._done("lost")

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

    def _done(self, said: str) -> None:
        with self._lock:
            self.outcomes[said] += 1
            count = sum(self.outcomes.values())
            if count % HUNDRED == 0:
                self.memory.append(self.server.resident())
            if count == self.kill_at:
                self._up.clear()
                self.restarted = len(self.memory)
                self._killing = threading.Thread(target=self._kill)
                self._killing.start()

    def _kill(self) -> None:
        try:
            self.server.kill()
            self.server.start()
        except Exception as error:  # whatever it is, nobody may wait for a server that does not come
            self.unstarted = str(error) or type(error).__name__
        finally:
            self._up.set()

    def finish(self) -> list[str]:
        """What is wrong beside the answers; waits for the restart.

        Returns:
            Sentences; none where there was no kill to be, or it did what it is for.
        """
        if not self.kill_at:
            return []
        if self._killing is None:
            return [f"the server was not killed: {self.kill_at} answers were not reached"]
        self._killing.join()
        if self.unstarted:
            return [f"the server did not start again: {self.unstarted}"]
        return [] if self.cut_off else ["the kill cut nothing off: no request was at work"]


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _slope(memory: Sequence[float]) -> str:
    """Of the readings but the first, which still fills caches."""
    if len(memory) < 3:
        return "too few readings"
    return f"{np.polyfit(np.arange(len(memory) - 1), memory[1:], 1)[0]:+.2f} MB a hundred"


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
            run = Rehearsal(server, models[0].name, pairs, options.kill_at)  # type: ignore[attr-defined]
            order = np.random.default_rng(1).integers(0, len(pairs.pairs), requests)
            began = time.monotonic()
            with ThreadPoolExecutor(options.at_a_time) as threads:  # type: ignore[attr-defined]
                list(threads.map(lambda row: run.ask(*row), enumerate(int(pair) for pair in order)))
            seconds = time.monotonic() - began
            faults = run.finish()
            tell(run, requests, seconds)
            for fault in faults:
                console.out(fault)
            if not run.unstarted:
                console.out(f"SIGTERM: exit code {server.stop()}")
        finally:
            server.kill()
    return int(ExitCode.OK if set(run.outcomes) == {"right"} and not faults else ExitCode.PARITY_FAILED)


def tell(run: Rehearsal, requests: int, seconds: float) -> None:
    """Print what came of it."""
    counts = ", ".join(f"{count} {what}" for what, count in sorted(run.outcomes.items()))
    console.out(f"{requests} answers in {seconds:.0f} s: {counts}")
    if run.first:
        middle, late = np.percentile(run.first, (50, 95))
        console.out(f"first response, s: median {middle:.3f}, 95th percentile {late:.3f}")
    console.out(f"asked again: {len(run.errors)}, {run.cut_off} of them after the kill")
    for said, count in Counter(run.errors).items():
        console.out(f"  {count} x {said[:160]}")
    before, after = run.memory[: run.restarted], run.memory[run.restarted :]
    for name, part in (("before the kill", before), ("after it", after)):
        console.out(f"memory {name}, MB: {', '.join(f'{held:.1f}' for held in part)}; {_slope(part)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(Command(parser, _run), "python -m parity_tests.laboratory.triton_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
