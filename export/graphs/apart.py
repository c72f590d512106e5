"""Graphs traced in a process of their own, while this one reads and writes weights.

A trace is Python from end to end and holds the interpreter's lock, so a thread of this process would halt the others. Where
nothing else runs in this process yet, the other one is forked from it and has its libraries; else it is a new one, gets its
jobs pickled on standard input, and is ``python -m export.graphs.apart``. It answers with the graphs, one after the other.
Where it cannot (a module that it cannot import, memory), the graph is traced here, and what was wrong shows here.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from export.source import row_threads

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("edgeproof")

Job = Callable[[], "onnx.ModelProto"]
"""Traces one graph; it can be pickled."""

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 8
"""Bytes before each graph that say how long it is."""

DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


class GraphsApart:
    """Graphs by name, each made once: ahead in the other process after `begin`, else when it is asked for."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = dict(jobs)
        self._process: Forked | Started | None = None
        self._coming: Iterator[str] = iter(())
        self._ready: SimpleQueue[bytes | None] = SimpleQueue()
        self._under_way = ExitStack()

    def begin(self, name: str) -> None:
        """Start making this graph and those behind it; nothing where that was begun."""
        if self._process is not None:
            return
        names = list(self._jobs)
        names = names[names.index(name) :]
        jobs = [self._jobs[name] for name in names]
        self._process = Forked(jobs) if may_fork() else Started(jobs)
        self._coming = iter(names)
        # else it would wait with each until that is asked for
        receiving = threading.Thread(target=_receive, args=(self._process.answers, self._ready), daemon=True)
        receiving.start()
        self._under_way.callback(receiving.join)
        self._under_way.callback(self._process.end)
        self._under_way.enter_context(row_threads.busy_elsewhere(self._process.alive))

    def graph(self, name: str) -> onnx.ModelProto:
        """One graph; waits for it where it is being made."""
        for ready in self._coming:
            model = self._next()
            if model is None:
                self.end()
                log.debug("the process that traces graphs ended before %s; tracing it here", ready)
                break
            if ready == name:
                return model
        return self._jobs[name]()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._coming = iter(())
        self._under_way.close()

    def _next(self) -> onnx.ModelProto | None:
        import onnx

        content = self._ready.get()
        if content is None:
            return None
        with suppress(Exception):
            return onnx.ModelProto.FromString(content)
        return None


def _receive(answers: BinaryIO, ready: SimpleQueue[bytes | None]) -> None:
    """Put the graphs that come into a queue, and None behind the last whole one."""
    with answers, suppress(OSError):
        while len(length := answers.read(LENGTH)) == LENGTH:
            content = answers.read(size := int.from_bytes(length, "little"))
            if len(content) < size:
                break
            ready.put(content)
    ready.put(None)


class Started:
    """A new process.

    Attributes:
        answers: its graphs.
    """

    def __init__(self, jobs: list[Job]) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "export.graphs.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError), self._process.stdin as given:
            pickle.dump(jobs, given)
        self.answers = self._process.stdout

    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


def may_fork() -> bool:
    """Whether a copy of this process can go on by itself: no thread that it would lack holds a lock, no GPU is in use."""
    torch = sys.modules.get("torch")
    in_use = torch is not None and torch.cuda.is_initialized()
    return sys.platform == "linux" and threading.active_count() == 1 and not in_use


class Forked:
    """A copy of this process.

    Attributes:
        answers: its graphs.
    """

    def __init__(self, jobs: list[Job]) -> None:
        incoming, outgoing = os.pipe()
        parent = os.getpid()
        self._lock = threading.Lock()
        """Around the process's end, which is told once."""
        collects = gc.isenabled()
        # a session of ONNX Runtime that the copy collected would wait for its threads, which are not there
        gc.disable()
        with warnings.catch_warnings():
            # Python 3.12 counts threads of native libraries, which see to forks themselves
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process: int | None = os.fork()
        if not self._process:
            _go_on_alone(jobs, outgoing, parent)
        if collects:
            gc.enable()
        os.close(outgoing)
        self.answers: BinaryIO = os.fdopen(incoming, "rb")

    def alive(self) -> bool:
        """Whether it has not ended by itself."""
        with self._lock:
            if self._process is not None and os.waitpid(self._process, os.WNOHANG)[0]:
                self._process = None
            return self._process is not None

    def end(self) -> None:
        """Kill it."""
        with self._lock:
            if self._process is not None:
                os.kill(self._process, signal.SIGKILL)
                os.waitpid(self._process, 0)
                self._process = None


def _go_on_alone(jobs: list[Job], outgoing: int, parent: int) -> NoReturn:
    """What the copy does: holds nothing of the other's files, locks and handlers, traces, and is gone."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _die_with(parent)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        os.closerange(3, outgoing)
        os.closerange(outgoing + 1, os.sysconf("SC_OPEN_MAX"))
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
        import torch

        # the threads of the other's operators are not here
        torch.set_num_threads(1)
        with os.fdopen(outgoing, "wb") as answers:
            _answer(jobs, answers)
    finally:
        os._exit(0)  # nothing that the other has still to write is written twice


def main() -> None:
    """Trace the jobs on standard input. Cycles are left: they take less memory than the search for them takes time."""
    if sys.platform == "linux":
        _die_with(os.getppid())
    gc.disable()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        # what libraries print must not stand between the graphs
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _answer(pickle.load(sys.stdin.buffer), answers)


def _die_with(parent: int) -> None:
    """Die when the export that started this process does."""
    import ctypes

    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _answer(jobs: Iterable[Job], answers: BinaryIO) -> None:
    """Trace one graph after the other."""
    for job in jobs:
        content = job().SerializeToString(deterministic=True)
        answers.write(len(content).to_bytes(LENGTH, "little") + content)
        answers.flush()


if __name__ == "__main__":
    main()
