"""Ask a running server streamed questions with pictures, hold each answer against the package's own, and watch its memory.

    python -m parity_tests.laboratory.server_rehearsal --server URL --package DIR [--requests 1000] [--at-a-time 8]
        [--provider NAME] [--process PID] [--hostile]

Questions and pictures are drawn from a few dozen pairs, whose answers the package gives alone first. ``--process`` is the
server's own, whose resident memory is read after each hundred answers. With ``--hostile`` as many broken requests are sent
meanwhile: clients that leave, bodies that are no JSON, pictures that are none. Exit code 0 when every answer is right.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from parity_tests.laboratory.thread_rehearsal import QUESTIONS
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import EdgeproofError, ExitCode
from runtime_py.generation.generate import Overrides
from runtime_py.model import Model, load
from runtime_py.serving.client import Client, user_message

PICTURES = 6
NEW_TOKENS = 16
HUNDRED = 100

BROKEN = (
    b"",
    b"{",
    b"[" * 10_000,
    b'{"model": 1}',
    *(
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}).encode()
        for url in ("data:image/png;base64,AAAA", "file:///etc/passwd", "http://127.0.0.1/")
    ),
)


class Pairs:
    """What is asked, and what the package says to it alone."""

    def __init__(self, model: Model) -> None:
        draw = np.random.default_rng(0)
        self.pictures = [draw.integers(0, 256, (60 + 8 * number, 64, 3), dtype=np.uint8) for number in range(PICTURES)]
        self.pairs = [(text, picture) for text in QUESTIONS for picture in range(PICTURES)]
        wanted = Overrides(NEW_TOKENS, temperature=0.0, repetition_penalty=1.0, stop_ids=())
        self.alone = [model.chat(text, [self.pictures[picture]], overrides=wanted).text for text, picture in self.pairs]

    def ask(self, client: Client, name: str, pair: int) -> str:
        """``right``, ``wrong``, or what went wrong."""
        text, picture = self.pairs[pair]
        body = {
            "model": name,
            "messages": user_message(text, [self.pictures[picture]]),
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": NEW_TOKENS,
            "ignore_eos": True,
        }
        try:
            chunks = client.stream(body)
            said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        except EdgeproofError as error:
            return f"failed: {error.what[:80]}"
        return "right" if said == self.alone[pair] else "wrong"


def resident(process: int | None) -> float | None:
    """Megabytes of a process; None where it is not known."""
    if process is None:
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
    return None


def disturb(url: str, over: threading.Event, outcomes: Counter[str]) -> None:
    """Send broken requests until it is over; how each ended is counted."""
    parts, number = urlsplit(url), 0
    host, port = parts.hostname or "", parts.port or 80
    while not over.is_set():
        number += 1
        try:
            if number % 3 == 0:
                with socket.create_connection((host, port), 10) as leaving:
                    leaving.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{")
                outcomes["left"] += 1
                continue
            connection = http.client.HTTPConnection(host, port, timeout=60)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", BROKEN[number % len(BROKEN)], headers)
            answer = connection.getresponse()
            json.loads(answer.read())
            outcomes[str(answer.status)] += 1
            connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcomes[type(error).__name__] += 1


@contextlib.contextmanager
def disturbed(url: str, outcomes: Counter[str]) -> Iterator[None]:
    """While inside, broken requests are sent; they end however it ends."""
    over = threading.Event()
    nuisance = threading.Thread(target=disturb, args=(url, over, outcomes))
    nuisance.start()
    try:
        yield
    finally:
        over.set()
        nuisance.join()


@contextlib.contextmanager
def asking(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that finish what they ask when it is cut off, and begin nothing more."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Ask a running server many questions at a time and hold each answer against the package's own.")
    flags.package(made)
    made.add_argument("--server", required=True, metavar="URL", help="of a server that runs the package, without a key")
    made.add_argument("--requests", type=flags.whole_number(1), default=1000, metavar="N", help="default 1000")
    made.add_argument("--at-a-time", type=flags.whole_number(1), default=8, metavar="N", help="default 8")
    made.add_argument("--provider", action="append", metavar="NAME", help="of ONNX Runtime, for the answers given alone")
    made.add_argument("--process", type=int, metavar="PID", help="the server's, whose memory is watched")
    made.add_argument("--hostile", action="store_true", help="send broken requests meanwhile")
    flags.trust(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    with load(options.package, threads=1, providers=options.provider, trust=options.trust) as model:
        pairs = Pairs(model)
    client = Client(options.server)
    name = client.facts()["id"]
    order = np.random.default_rng(1).integers(0, len(pairs.pairs), options.requests)
    outcomes: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    memory: list[float] = []
    began = time.monotonic()
    hostile = disturbed(options.server, broken) if options.hostile else contextlib.nullcontext()
    with hostile, asking(options.at_a_time) as threads:
        for number, said in enumerate(threads.map(lambda pair: pairs.ask(client, name, int(pair)), order), 1):
            outcomes[said] += 1
            held = resident(options.process) if number % HUNDRED == 0 else None
            if held is not None:
                memory.append(held)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
    console.out(f"{options.requests} answers in {time.monotonic() - began:.0f} s: {counts}")
    if broken:
        console.out("broken requests: " + ", ".join(f"{count} {what}" for what, count in sorted(broken.items())))
    if len(memory) > 2:
        slope = np.polyfit(np.arange(len(memory) - 1), memory[1:], 1)[0]
        console.out(
            f"memory after each hundred, MB: {', '.join(f'{held:.1f}' for held in memory)}; {slope:+.2f} MB a hundred"
        )
    return int(ExitCode.OK if set(outcomes) == {"right"} else ExitCode.PARITY_FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(Command(parser, _run), "python -m parity_tests.laboratory.server_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
