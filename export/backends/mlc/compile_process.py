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
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", FIXED_ADDRESSES],
        input=pickle.dumps((request, place, out)),
        capture_output=True,
        env={**kept_environment(), "PYTHONHASHSEED": "0", "PYTHONPATH": path},
        check=False,
    )
    # the last line alone: libraries may print before it
    answer = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode or not answer.startswith("{"):
        raise errors.MachineError(
            f"compiling the {place} library failed (exit status {done.returncode}): {_tail(done.stderr)}",
            "apache-tvm of the version in pyproject.toml, and memory for the compiler",
            "pip install edgeproof[mlc]; on an exit status of -9 free some memory and run again with --resume",
        )
    value = json.loads(answer)
    if "error" in value:
        raise getattr(errors, value["error"])(value["what"], value["expected"], value["next"])
    return value["metadata"]


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
