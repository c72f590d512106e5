"""A package opened by transformers.js in node, and asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity_tests.laboratory.consumers.question import NEW_TOKENS, PICTURE, WORDS, Question

ASK = Path(__file__).with_name("ask.mjs")
LIMIT = 300
"""Seconds for one package."""


def missing(modules: Path | None) -> str | None:
    """What keeps transformers.js from being run here; None when nothing does.

    Args:
        modules: a folder with ``node_modules/@huggingface/transformers``.
    """
    if shutil.which("node") is None:
        return "no node"
    if modules is None or not (modules / "node_modules" / "@huggingface" / "transformers").is_dir():
        return "no @huggingface/transformers (npm install in a folder, named with --node-modules)"
    return None


def ids(folder: Path, texts: Sequence[str], modules: Path) -> list[list[int]]:
    """The ids of its tokenizer, by text."""
    made: list[list[int]] = _ask({"folder": str(folder.resolve()), "texts": list(texts)}, modules)["ids"]
    return made


def answers(folder: Path, asked: list[Question], modules: Path) -> list[tuple[int, ...]]:
    """Ids of its greedy answers.

    Raises:
        RuntimeError: what transformers.js says of the package.
    """
    rows = [
        {
            "ids": question.ids.tolist(),
            "pixels": None if question.pixels is None else question.pixels.ravel().tolist(),
            "shape": None if question.pixels is None else list(question.pixels.shape),
        }
        for question in asked
    ]
    task = {"folder": str(folder.resolve()), "newTokens": NEW_TOKENS, "stops": list(asked[0].stops), "questions": rows}
    return [tuple(row) for row in _ask(task, modules)["answers"]]


def own_answer(folder: Path, asked: list[Question], picture: Path, modules: Path) -> list[tuple[int, ...]]:
    """Ids of its answer about a picture that its own processor, tokenizer and template prepared.

    Raises:
        RuntimeError: what transformers.js says of the package.
    """
    task = {"folder": str(folder.resolve()), "newTokens": NEW_TOKENS, "stops": list(asked[0].stops)}
    task |= {"picture": str(picture.resolve()), "text": WORDS[PICTURE]}
    return [tuple(row) for row in _ask(task, modules)["answers"]]


def _ask(task: Mapping[str, Any], modules: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgeproof-consumers-") as scratch:
        file = Path(scratch) / "asked.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        result = file.with_name("result.json")
        command = ["node", str(ASK), str(file), str(modules.resolve()), str(result)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        if run.returncode:
            said = [line for line in run.stderr.splitlines() if "Error" in line]
            raise RuntimeError(said[0].strip() if said else run.stderr.strip()[-300:])
        given: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return given
