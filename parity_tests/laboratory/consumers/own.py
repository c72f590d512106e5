"""Our own runtime in another Python, with another onnxruntime: ``PYTHON -m parity_tests.laboratory.consumers.own``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
LIMIT = 300
"""Seconds for one package."""


@dataclass(frozen=True)
class Elsewhere:
    """What a package said there: onnxruntime's version, and the answers to the questions of `question.questions`."""

    version: str
    answers: list[tuple[int, ...]]


def elsewhere(python: Path, folder: Path, picture: Path) -> Elsewhere:
    """Ask a package by another interpreter.

    Raises:
        RuntimeError: the last line that it says on stderr.
    """
    command = [str(python), "-m", __name__, str(folder.resolve()), str(picture.resolve())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=ROOT, env=environment)
    if run.returncode:
        said = run.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit code {run.returncode}")
    said = json.loads(run.stdout)
    return Elsewhere(said["onnxruntime"], [tuple(answer) for answer in said["answers"]])


def main(folder: str, picture: str) -> None:
    """Print what `elsewhere` reads."""
    import onnxruntime

    from parity_tests.laboratory.consumers.question import questions

    answers = [question.answer for question in questions(Path(folder), Path(picture))]
    sys.stdout.write(json.dumps({"onnxruntime": onnxruntime.__version__, "answers": answers}))


if __name__ == "__main__":
    main(*sys.argv[1:])
