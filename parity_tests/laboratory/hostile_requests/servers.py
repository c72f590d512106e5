"""The two servers that are sent hostile requests, as processes of their own: ``runtime_py serve``, and the real Triton."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from export.triton.layout import CONFIG, models_in
from parity_tests.laboratory.hostile_requests.attempt import Attempt, outcome
from parity_tests.laboratory.hostile_requests.triton_kinds import Call, call_outcome
from parity_tests.laboratory.hostile_requests.wires import Wire, openai, triton
from parity_tests.laboratory.served import Served, served
from parity_tests.laboratory.server_rehearsal import Pairs, resident
from parity_tests.laboratory.triton_rehearsal import Asker
from parity_tests.triton.process import VARIABLE, TritonProcess, environment
from runtime_py.errors import MachineError, UsageError
from runtime_py.serving.client import Client

SECONDS = 60.0
"""For an ordinary question, and for the server to come to rest."""
LIMITS: Mapping[str, int] = {
    "slots": 4, "queue": 64, "threads": 1, "timeout": 10,
    "max-image-mb": 2, "max-request-mb": 4, "max-megapixels": 4, "max-images": 4,
}  # fmt: skip


class Server(Protocol):
    """What is done to a server, and what is asked of it."""

    name: str
    wire: Wire

    def send(self, attempt: Attempt | Call, seconds: float) -> str:
        """The outcome of a hostile request, which hangs after so many seconds."""

    def ask(self, pair: int) -> str:
        """An ordinary question: ``right``, ``wrong``, or what went wrong."""

    def at_work(self) -> tuple[int, int]:
        """Answers at work, and requests waiting.

        Raises:
            OSError, http.client.HTTPException, ValueError: it does not answer.
        """

    def memory(self) -> float:
        """Megabytes."""

    def open_files(self) -> int:
        """Of its process; 0 where that is not known."""

    def faults(self) -> list[str]:
        """Lines of its log that no request may cause, and that it ended."""


class OpenAIServer:
    """``runtime_py serve`` over a package."""

    def __init__(self, server: Served, pairs: Pairs) -> None:
        self.name, self.wire = server.name, openai()
        self._server, self._pairs = server, pairs
        self._client = Client(server.url, seconds=SECONDS)
        parts = urlsplit(server.url)
        self._address = (parts.hostname or "", parts.port or 80)

    def send(self, attempt: Attempt | Call, seconds: float) -> str:
        assert isinstance(attempt, Attempt)
        return outcome(attempt, self._address, seconds)

    def ask(self, pair: int) -> str:
        return self._pairs.ask(self._client, self.name, pair)

    def at_work(self) -> tuple[int, int]:
        connection = http.client.HTTPConnection(*self._address, timeout=SECONDS)
        connection.request("GET", "/health")
        value: dict[str, int] = json.loads(connection.getresponse().read())
        connection.close()
        return value["busy"], value["queued"]

    def memory(self) -> float:
        return resident(self._server.process.pid) or 0.0

    def open_files(self) -> int:
        return open_files(self._server.process.pid)

    def faults(self) -> list[str]:
        said = [] if self._server.process.poll() is None else ["the server ended"]
        words = ("Traceback", "ERROR", "failed")
        return said + [line for line in self._server.said().splitlines() if any(word in line for word in words)]


class TritonServer:
    """tritonserver over a repository; others ask it through streams of gRPC."""

    def __init__(self, process: TritonProcess, name: str, pairs: Pairs) -> None:
        self.name, self.wire = name, triton(name)
        self._process, self._asker, self._number = process, Asker(process, name, pairs), 0

    def send(self, attempt: Attempt | Call, seconds: float) -> str:
        http_port, grpc_port, _ = self._process.ports
        if isinstance(attempt, Call):
            return call_outcome(attempt, ("127.0.0.1", grpc_port), seconds)
        return outcome(attempt, ("127.0.0.1", http_port), seconds)

    def ask(self, pair: int) -> str:
        self._number += 1
        try:
            return self._asker.ask(self._number, pair)
        except MachineError as error:
            return f"failed: {error.what[:80]}"

    def at_work(self) -> tuple[int, int]:
        status, said = self._process.get("/metrics", 2)
        if status != 200 or not self._process.ready():
            raise ConnectionError(f"status {status} of the metrics, or the model is not ready")
        counted = partial(_gauge, said)
        return counted("edgeproof_slots_busy"), counted("edgeproof_requests_waiting")

    def memory(self) -> float:
        return self._process.resident()

    def open_files(self) -> int:
        return open_files(self._process.pid)

    def faults(self) -> list[str]:
        ended = self._process.ended
        if ended is None:
            return self._process.errors()
        last = self._process.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        return [*self._process.errors(), f"the server ended with {ended}; its last lines: {' | '.join(last)[:1500]}"]


def _gauge(metrics: str, name: str) -> int:
    """The sum over all instances."""
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}{{")]
    if not lines:
        raise ValueError(f"no {name} among the metrics")
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


def open_files(process: int) -> int:
    """How many a process has open; 0 where that is not known."""
    folder = Path(f"/proc/{process}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@contextlib.contextmanager
def serve(package: Path, pairs: Pairs) -> Iterator[Server]:
    """``runtime_py serve``, with small limits."""
    limits = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with served(package, limits) as server:
        yield OpenAIServer(server, pairs)


@contextlib.contextmanager
def triton_of(repository: Path, pairs: Pairs) -> Iterator[Server]:
    """tritonserver over a copy of a repository, whose first model has small limits.

    Raises:
        UsageError: there is no server here.
    """
    here = environment()
    if here is None:
        raise UsageError("no tritonserver", f"an environment in {VARIABLE}", "see parity_tests/triton/process.py")
    with tempfile.TemporaryDirectory(prefix="edgeproof-triton-") as folder:
        copy = Path(shutil.copytree(repository, Path(folder) / "repository"))
        config = models_in(copy)[0].folder / CONFIG
        config.write_text(limited(config.read_text(encoding="utf-8")), encoding="utf-8")
        process = TritonProcess(here, copy, Path(folder))
        try:
            process.start()
            yield TritonServer(process, models_in(copy)[0].name, pairs)
        finally:
            process.kill()


def limited(config: str) -> str:
    """A config.pbtxt with small limits."""
    # what is --timeout of a body there is that of the whole answer here
    limits = {**{flag.replace("-", "_"): value for flag, value in LIMITS.items()}, "timeout_s": int(SECONDS)}
    del limits["timeout"]
    for name, value in limits.items():
        config, count = re.subn(f'(key: "{name}" value: {{ string_value: )"[^"]*"', rf'\1"{value}"', config)
        assert count == 1, name
    return config
