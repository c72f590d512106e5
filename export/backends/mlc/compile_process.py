"""Compile a model library in a process of its own, so that the exporter never holds the compiler's memory.

The request goes to the process pickled on its standard input; what comes back is the library file, or an error that is
raised again here. ``python -m export.backends.mlc.compile_process`` is that process.
"""

from __future__ import annotations

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

from export.backends.mlc.overview import Overview
from export.backends.mlc.parameters import Parameter
from export.backends.mlc.schemes import Scheme
from export.quantisation.spec import Assignment
from export.specs import ModelSpec
from runtime_py import errors
from targets.base import Limits

ROOT = Path(__file__).resolve().parents[3]
FIXED_ADDRESSES = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).personality(0x0040000)
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, "-m", "export.backends.mlc.compile_process"])
"""
"""Starts the process without address randomisation (where the kernel lets it) and with a fixed hash seed: TVM has maps that
are walked in the order of addresses. The one whose order reached the libraries is sorted (`passes.shape_order`); this keeps
another from doing so. The process dies with the export that started it (PR_SET_PDEATHSIG), so that none writes into a folder
which a resumed export has taken over."""

KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
"""Environment variables that the compiling process gets; any other could reach the compiler and change its code."""


@dataclass(frozen=True)
class LibraryRequest:
    """What to compile.

    Attributes:
        name: model library name; ``_`` for ``-``, at least 8 characters with the ``_`` that ends the prefix.
        parameters: the package's parameter list, which the module must declare exactly.
        blocks: a stage whose block outputs are asked for; the library then has that function and the cache alone.
    """

    name: str
    model_type: str
    spec: ModelSpec
    assignments: Mapping[str, Assignment]
    scheme: Scheme
    limits: Limits
    overview: Overview
    parameters: tuple[Parameter, ...]
    blocks: str = ""


def compile_apart(request: LibraryRequest, place: str, out: Path) -> dict[str, Any]:
    """Compile for ``place`` (export.backends.mlc.library.TARGETS) into ``out``; returns the library's metadata.

    Raises:
        EdgeproofError: what the compiling process raised.
        MachineError: the process died.
    """
    return compile_together(request, {place: out})[place]


def compile_together(request: LibraryRequest, outs: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Compile for every place at once, each in a process of its own; returns the metadata by place.

    When one fails, the others are ended.

    Raises:
        EdgeproofError: what the first of them that failed, in the order of ``outs``, raised; MachineError: it died.
    """
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for place, out in outs.items():
            started[place] = _start(request, place, out)
        return {place: _answer(process, place) for place, process in started.items()}
    finally:
        for process in started.values():
            with process:
                process.kill()


def _start(request: LibraryRequest, place: str, out: Path) -> subprocess.Popen[bytes]:
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
        given.write(pickle.dumps((request, place, out)))
    # what is closed here must not be written to by `communicate`
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[bytes], place: str) -> dict[str, Any]:
    output, errors_told = process.communicate()
    # the last line alone: libraries may print before it
    answer = output.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode or not answer.startswith("{"):
        raise errors.MachineError(
            f"compiling the {place} library failed (exit status {process.returncode}): {_tail(errors_told)}",
            "apache-tvm of the version in pyproject.toml, and memory for the compiler",
            "pip install edgeproof[mlc]; on an exit status of -9 free some memory and run again with --resume",
        )
    value = json.loads(answer)
    if "error" in value:
        raise getattr(errors, value["error"])(value["what"], value["expected"], value["next"])
    metadata: dict[str, Any] = value["metadata"]
    return metadata


def kept_environment() -> dict[str, str]:
    """The part of this process's environment that finds programs and libraries, and nothing that configures them."""
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}


def _tail(text: bytes) -> str:
    return text.decode(errors="replace").strip()[-2000:]


def main() -> None:
    """Compile the request on standard input; the answer is the last line of standard output."""
    request, place, out = pickle.load(sys.stdin.buffer)
    try:
        from export.backends.mlc.library import compile_library

        answer: dict[str, Any] = {"metadata": compile_library(request, place, out)}
    except errors.EdgeproofError as error:
        kind = type(error).__name__
        answer = {"error": kind, "what": error.what, "expected": error.expected, "next": error.next_step}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
