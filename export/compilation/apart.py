"""A compiler in a process of its own, so that the exporter never holds its memory, and its bytes depend on nothing else.

What is asked for goes to the process pickled on its standard input; what comes back is JSON, or an error that is raised
again here. ``python -m export.compilation.apart`` is that process.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_py import errors

ROOT = Path(__file__).resolve().parents[2]
FIXED_ADDRESSES = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).personality(0x0040000)
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-m", "export.compilation.apart"])
"""
"""Starts the process without address randomisation (where the kernel lets it) and with a fixed hash seed: TVM has maps that
are walked in the order of addresses. The one whose order reached the libraries is sorted (`shape_order`); this keeps
another from doing so. The process dies with the export that started it (PR_SET_PDEATHSIG), so that none writes into a folder
which a resumed export has taken over."""

KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
"""Environment variables that the compiling process gets; any other could reach the compiler and change its code."""


@dataclass(frozen=True)
class Job:
    """A call for another process.

    Attributes:
        function: ``module:name``, imported there alone; what it returns is a JSON object.
        arguments: pickled.
    """

    function: str
    arguments: tuple[Any, ...]


def call_together(jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """Run every job at once, each in a process of its own; returns their answers by name.

    When one fails, the others are ended.

    Raises:
        EdgeproofError: what the first of them that failed, in the order of ``jobs``, raised; MachineError: it died.
    """
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, job in jobs.items():
            started[name] = _start(job)
        return {name: _answer(process, name) for name, process in started.items()}
    finally:
        for process in started.values():
            with process:
                process.kill()


def _start(job: Job) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", FIXED_ADDRESSES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**kept_environment(), "PYTHONHASHSEED": "0", "PYTHONPATH": path},
    )
    assert process.stdin is not None
    # a process that died at once says so by its exit status
    with suppress(BrokenPipeError), process.stdin as given:
        given.write(pickle.dumps(job))
    # what is closed here must not be written to by `communicate`
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    output, errors_told = process.communicate()
    # the last line alone: libraries may print before it
    answer = output.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode or not answer.startswith("{"):
        raise errors.MachineError(
            f"compiling the {name} library failed (exit status {process.returncode}): {_tail(errors_told)}",
            "apache-tvm of the version in pyproject.toml, and memory for the compiler",
            "pip install edgeproof[mlc]; on an exit status of -9 free some memory and run again with --resume",
        )
    value = json.loads(answer)
    if "error" in value:
        raise getattr(errors, value["error"])(value["what"], value["expected"], value["next"])
    made: dict[str, Any] = value["answer"]
    return made


def kept_environment() -> dict[str, str]:
    """The part of this process's environment that finds programs and libraries, and nothing that configures them."""
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}


def _tail(text: bytes) -> str:
    return text.decode(errors="replace").strip()[-2000:]


def main() -> None:
    """Run the job on standard input; the answer is the last line of standard output."""
    job: Job = pickle.load(sys.stdin.buffer)
    module, _, name = job.function.partition(":")
    try:
        answer: dict[str, Any] = {"answer": getattr(importlib.import_module(module), name)(*job.arguments)}
    except errors.EdgeproofError as error:
        kind = type(error).__name__
        answer = {"error": kind, "what": error.what, "expected": error.expected, "next": error.next_step}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
