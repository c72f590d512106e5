"""The command line: hostile requests, neighbours whose answers are watched, and what became of the server."""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from export.triton.layout import models_in
from parity_tests.laboratory.hostile_requests import servers
from parity_tests.laboratory.hostile_requests.attempt import Attempt
from parity_tests.laboratory.hostile_requests.kinds import Kinds
from parity_tests.laboratory.hostile_requests.neighbours import Neighbours, quiet
from parity_tests.laboratory.hostile_requests.servers import Server
from parity_tests.laboratory.hostile_requests.triton_kinds import Call, TritonKinds
from parity_tests.laboratory.server_rehearsal import HUNDRED, Pairs
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError
from runtime_py.model import load

AT_A_TIME = 16


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Start a server of a package, send it hostile requests, and hold its answers to others meanwhile.")
    which = made.add_mutually_exclusive_group(required=True)
    flags.package(which, required=False)
    which.add_argument(
        "--repository", type=Path, metavar="DIR", help="a Triton repository: tritonserver, not runtime_py serve"
    )
    made.add_argument("--requests", type=flags.whole_number(1), default=1000, metavar="N", help="default 1000")
    made.add_argument("--only", metavar="KIND", help="this kind alone; default all in turn")
    made.add_argument("--without", action="append", default=[], metavar="KIND", help="leave a kind out, repeatable")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of what is generated; default 0")
    made.add_argument(
        "--patience", type=flags.whole_number(1), default=60, metavar="S", help="until a request hangs, seconds; default 60"
    )
    flags.trust(made)
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    models = models_in(given.repository) if given.repository else []
    if given.repository and not models:
        raise UsageError(f"{given.repository} holds no model", "a repository that export wrote", "correct --repository")
    with load(models[0].package if models else given.package, threads=1, trust=given.trust) as model:
        pairs = Pairs(model)
    with servers.triton_of(given.repository, pairs) if models else servers.serve(given.package, pairs) as server:
        attempts = _made(server, given)
        memory, handles = [server.memory()], server.open_files()
        began = time.monotonic()
        with Neighbours(server, len(pairs.pairs)) as others, ThreadPoolExecutor(AT_A_TIME) as threads:
            came: list[str] = []
            for status in threads.map(partial(server.send, seconds=given.patience), attempts):
                came.append(status)
                if len(came) % HUNDRED == 0:
                    memory.append(server.memory())
                    console.say(f"{len(came)} after {time.monotonic() - began:.0f} s")
        took = time.monotonic() - began
        wrong = _wrong_outcomes(attempts, came, server.wire.busy)
        console.out(f"{given.requests} hostile requests in {took:.0f} s, {AT_A_TIME} at a time")
        console.out(f"others' answers meanwhile: {_counts(others.outcomes)}")
        waits = sorted(others.waits) or [float("nan")]
        console.out(f"health: median {waits[len(waits) // 2]:.3f} s, longest {waits[-1]:.3f} s of {len(waits)}")
        left = quiet(server, servers.SECONDS)
        held = ", ".join(f"{megabytes:.0f}" for megabytes in memory)
        console.out(f"resident memory before and after each hundred, MB: {held}; {left}")
        console.out(f"open files {handles} before, {server.open_files()} after")
        faults = server.faults()
    for line in [*wrong[:20], *faults[:20]]:
        console.out(f"wrong: {line}")
    right = not wrong and not faults and set(others.outcomes) == {"right"} and left == "nothing at work"
    return int(ExitCode.OK if right else ExitCode.PARITY_FAILED)


def _made(server: Server, given: argparse.Namespace) -> list[Attempt | Call]:
    """What is sent, every kind in turn.

    Raises:
        UsageError: no such kind.
    """
    draw = random.Random(given.seed)
    more = TritonKinds(server.name, draw, server.wire).kinds if given.repository else {}
    kinds = Kinds(server.name, draw, server.wire, more)
    kinds.choose(given.only, given.without)
    return [kinds.any(number) for number in range(given.requests)]


def _wrong_outcomes(attempts: Sequence[Attempt | Call], came: Sequence[str], busy: str) -> list[str]:
    """Print outcomes by kind; returns those that are wrong. ``busy`` is right for any of them: the server is full."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for attempt, status in zip(attempts, came, strict=True):
        table[attempt.kind][status] += 1
        if status not in attempt.right and status != busy:
            first = next((piece for piece in attempt.pieces if isinstance(piece, bytes)), b"")
            wrong.append(
                f"{attempt.kind}: {status}, not {' or '.join(sorted(attempt.right))}: {first[:160]!r}...{first[-200:]!r}"
            )
    for kind, outcomes in table.items():
        console.out(f"{kind}: {_counts(outcomes)}")
    return wrong


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what became of it; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.hostile_requests", arguments)
