"""Where a measurement lies, what is kept of it, and the programs that make it.

Every program runs as a child of its own, with one computing thread: its peak is what the kernel says of it, its seconds are
the processor's (`child_usage`). What is measured is kept as JSON with the settings that it was made with, so that a run that
was cut off goes on, and one that asks for something else measures anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate.statistics.passes import has_bfloat16
from parity_tests.laboratory.child_usage import usage_of
from runtime_py.errors import MachineError


@dataclass(frozen=True)
class Work:
    """Where everything lies, and how much is measured.

    Attributes:
        samples: of the sample set, that a method sees.
        tokens: of the text, that methods are compared on.
        versions: of the product and its tools; what was measured with others is measured anew.
    """

    folder: Path
    samples: int
    tokens: int
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def text(self) -> Path:
        return self.folder / "documentation.txt"

    def package(self, name: str) -> Path:
        return self.folder / "packages" / _file_name(name)

    def kept(self, name: str, settings: Any, measure: Callable[[], Any]) -> Any:
        """What a measurement says, from its file where it was made with the same settings and versions.

        Args:
            settings: everything that decides the outcome beside the versions, as JSON has it.
        """
        path = self.folder / "results" / f"{_file_name(name)}.json"
        key = json.loads(json.dumps({"settings": settings, "versions": dict(self.versions)}))
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(stored, dict) and stored.get("key") == key:
                return stored["value"]
        value = json.loads(json.dumps(measure()))
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"key": key, "value": value}, indent=1), encoding="utf-8")
        unfinished.replace(path)
        return value


def passes() -> str:
    """In what samples of a calibration pass a model of this size here; one for whole blocks has float32 in any case."""
    return "bfloat16" if has_bfloat16() else "float32"


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._%()" else "-" for letter in name)


def environment(work: Work, name: str, requirements: Sequence[str], *, whole: bool = True) -> Path:
    """The interpreter of an environment of the work's own that holds the requirements; made once.

    Args:
        whole: with what the requirements require.

    Raises:
        MachineError: the package index cannot be reached.
    """
    folder = work.folder / "environments" / name
    python, done = folder / "bin" / "python", folder / "requirements.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != list(requirements):
        venv.create(folder, with_pip=True, clear=True)
        run([str(python), "-m", "pip", "install", "-q", *([] if whole else ["--no-deps"]), *requirements])
        done.write_text(json.dumps(list(requirements)), encoding="utf-8")
    return python


def product(*arguments: str | Path) -> list[str]:
    """A command of the product: a module and what it is given."""
    return [sys.executable, "-m", *map(str, arguments)]


def _variables(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}


def run(command: Sequence[str], codes: Sequence[int] = (0,), variables: Mapping[str, str] | None = None) -> str:
    """Standard output of a program.

    Raises:
        MachineError: it ended with another code than expected.
    """
    ended = subprocess.run(command, env=_variables(variables), capture_output=True, text=True, check=False)
    if ended.returncode not in codes:
        raise MachineError(
            f"{' '.join(command[1:4])} ended with {ended.returncode}: {ended.stderr[-2000:]}", f"one of {list(codes)}",
            "mend what it says and run again; what is measured already is kept",
        )  # fmt: skip
    return ended.stdout


def measured(command: Sequence[str]) -> dict[str, Any]:
    """Exit code, wall and processor seconds and peak resident bytes of a program and its children."""
    used = usage_of(command, _variables(None))
    return {
        "code": used.code,
        "seconds": round(used.seconds, 1),
        "processor_seconds": round(used.processor, 1),
        "peak": used.peak,
    }
