"""The command line: hostile requests, neighbours whose answers are watched, and what became of the server."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from parity_tests.laboratory.hostile_requests.attempt import Attempt, outcome
from parity_tests.laboratory.hostile_requests.kinds import Kinds
from parity_tests.laboratory.served import Served, served
from parity_tests.laboratory.server_rehearsal import HUNDRED, Pairs, resident
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.model import load
from runtime_py.serving.client import Client

AT_A_TIME = 16
NEIGHBOURS = 2
SECONDS = 60.0
"""Until a request that brought neither an answer nor an end is said to hang."""
BODY_SECONDS = 10
LIMITS = (
    *("--slots", "4", "--queue", "64", "--threads", "1", "--timeout", str(BODY_SECONDS)),
    *("--max-image-mb", "2", "--max-request-mb", "4", "--max-megapixels", "4", "--max-images", "4"),
)
UNANSWERED = (OSError, http.client.HTTPException, ValueError)
"""What `health` raises of a server that does not answer, or not in JSON."""

BUSY = "429"
"""Is right for any of them: the server is full."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Start a server of a package, send it hostile requests, and hold its answers to others meanwhile.")
    flags.package(made)
    made.add_argument("--requests", type=flags.whole_number(1), default=1000, metavar="N", help="default 1000")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of what is generated; default 0")
    flags.trust(made)
    flags.talk(made)
    return made


class Neighbours:
    """Clients who ask ordinary questions until it is over, and one who asks after the server's health."""

    def __init__(self, server: Served, pairs: Pairs) -> None:
        self._server, self._pairs = server, pairs
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.waits: list[float] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(NEIGHBOURS)]
        self._threads.append(threading.Thread(target=self._look))

    def __enter__(self) -> Neighbours:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        draw, client = random.Random(number), Client(self._server.url, seconds=SECONDS)
        while not self._over.is_set():
            said = self._pairs.ask(client, self._server.name, draw.randrange(len(self._pairs.pairs)))
            self.outcomes[said] += 1

    def _look(self) -> None:
        while not self._over.wait(0.2):
            began = time.monotonic()
            try:
                health(self._server)
                self.waits.append(time.monotonic() - began)
            except UNANSWERED as error:
                self.outcomes[f"health: {type(error).__name__}"] += 1


def health(server: Served) -> dict[str, int]:
    """What the server says of itself."""
    connection = http.client.HTTPConnection(*address(server), timeout=SECONDS)
    connection.request("GET", "/health")
    value: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return value


def address(server: Served) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname or "", parts.port or 80


def _run(given: argparse.Namespace) -> int:
    with load(given.package, threads=1, trust=given.trust) as model:
        pairs = Pairs(model)
    with served(given.package, LIMITS) as server:
        kinds = Kinds(server.name, random.Random(given.seed))
        attempts = [kinds.any(number) for number in range(given.requests)]
        memory, handles = [resident(server.process.pid) or 0], open_files(server)
        began = time.monotonic()
        with Neighbours(server, pairs) as others, ThreadPoolExecutor(AT_A_TIME) as threads:
            came: list[str] = []
            for status in threads.map(lambda attempt: outcome(attempt, address(server), SECONDS), attempts):
                came.append(status)
                if len(came) % HUNDRED == 0:
                    memory.append(resident(server.process.pid) or 0)
                    console.say(f"{len(came)} after {time.monotonic() - began:.0f} s")
        took = time.monotonic() - began
        wrong = _told(attempts, came)
        console.out(f"{given.requests} hostile requests in {took:.0f} s, {AT_A_TIME} at a time")
        console.out(f"others' answers meanwhile: {_counts(others.outcomes)}")
        waits = sorted(others.waits) or [float("nan")]
        console.out(f"/health: median {waits[len(waits) // 2]:.3f} s, longest {waits[-1]:.3f} s of {len(waits)}")
        left = _quiet(server)
        alive = server.process.poll() is None
        held = ", ".join(f"{megabytes:.0f}" for megabytes in memory)
        console.out(f"resident memory before and after each hundred, MB: {held}; {left}")
        console.out(f"open files {handles} before, {open_files(server)} after")
        faults = [line for line in server.said().splitlines() if "Traceback" in line or "ERROR" in line or "failed" in line]
    for line in [*wrong[:20], *faults[:20], *([] if alive else ["the server ended"])]:
        console.out(f"wrong: {line}")
    right = alive and not wrong and not faults and set(others.outcomes) == {"right"} and left == "nothing at work"
    return int(ExitCode.OK if right else ExitCode.PARITY_FAILED)


def _told(attempts: Sequence[Attempt], came: Sequence[str]) -> list[str]:
    """Print outcomes by kind; what was not right."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for attempt, status in zip(attempts, came, strict=True):
        table[attempt.kind][status] += 1
        if status not in attempt.right and status != BUSY:
            first = next((piece for piece in attempt.pieces if isinstance(piece, bytes)), b"")
            wrong.append(
                f"{attempt.kind}: {status}, not {' or '.join(sorted(attempt.right))}: {first[:160]!r}...{first[-200:]!r}"
            )
    for kind, outcomes in table.items():
        console.out(f"{kind}: {_counts(outcomes)}")
    return wrong


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))


def _quiet(server: Served) -> str:
    """Whether the server comes to rest, or that it does not answer."""
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        try:
            state = health(server)
        except UNANSWERED as error:
            return f"no answer: {type(error).__name__}"
        if not state["busy"] and not state["queued"]:
            return "nothing at work"
        time.sleep(0.2)
    return f"still {state['busy']} at work, {state['queued']} waiting"


def open_files(server: Served) -> int:
    """Of the server's process; 0 where that is not known."""
    folder = Path(f"/proc/{server.process.pid}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what became of it; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.hostile_requests", arguments)
