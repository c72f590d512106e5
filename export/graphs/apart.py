"""Graphs traced in a process of their own, while this one reads and writes weights.

A trace is Python from end to end and holds the interpreter's lock, so a thread of this process would halt the others. The
process gets its jobs pickled on standard input and answers with the graphs, one after the other. Where it cannot (a module
that it cannot import, memory), the graph is traced here, and what was wrong shows here. ``python -m export.graphs.apart`` is
that process.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("edgeproof")

Job = Callable[[], "onnx.ModelProto"]
"""Traces one graph; it can be pickled."""

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 8
"""Bytes before each graph that say how long it is."""


class GraphsApart:
    """Graphs by name, each made once: ahead in the other process after `begin`, else when it is asked for."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = dict(jobs)
        self._process: subprocess.Popen[bytes] | None = None
        self._coming: Iterator[str] = iter(())

    def begin(self, name: str) -> None:
        """Start making this graph and those behind it; nothing where that was begun."""
        if self._process is not None:
            return
        names = list(self._jobs)
        names = names[names.index(name) :]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "export.graphs.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as given:
            pickle.dump([self._jobs[name] for name in names], given)
        self._coming = iter(names)

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
        if self._process is not None:
            with self._process as process:
                process.kill()

    def _next(self) -> onnx.ModelProto | None:
        import onnx

        assert self._process is not None and self._process.stdout is not None
        length = self._process.stdout.read(LENGTH)
        if len(length) < LENGTH:
            return None
        content = self._process.stdout.read(int.from_bytes(length, "little"))
        with suppress(Exception):
            return onnx.ModelProto.FromString(content)
        return None


def main() -> None:
    """Trace the jobs on standard input. Cycles are left: they take less memory than the search for them takes time."""
    if sys.platform == "linux":
        import ctypes

        # the process dies with the export that started it (PR_SET_PDEATHSIG)
        ctypes.CDLL(None).prctl(1, 9)
    gc.disable()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        # what libraries print must not stand between the graphs
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _answer(sys.stdin.buffer, answers)


def _answer(asked: BinaryIO, answers: BinaryIO) -> None:
    for job in pickle.load(asked):
        content = job().SerializeToString(deterministic=True)
        answers.write(len(content).to_bytes(LENGTH, "little") + content)
        answers.flush()


if __name__ == "__main__":
    main()
