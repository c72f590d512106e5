r"""What the first token after one 448-pixel picture is made of, beside an older tree and llama.cpp's server, in turns.

    python -m parity_tests.laboratory.first_token --package DIR [--rounds 3] [--threads 2] [--text 32] \\
        [--older-tree FOLDER --older-package DIR] [--llama-python PYTHON --model CHECKPOINT --gguf FOLDER]

The package is a MiniCPM-V 1.0's; a picture's rows and ``--text`` ids are its prompt (`stages`). An older tree is a checkout
whose ``runtime_py`` runs a package of its own export. llama.cpp's server (xllamacpp) has files of the checkpoint's sizes,
which are written unless the folder has them, and is asked for one token: with a picture and as many letters of text, and
without a picture but with as many more letters as the picture has rows. In each round each of them is opened, asked once
uncounted, asked ``--times`` and closed, so that only one is in memory. With ``--before N`` the package alone runs: its
tower and the prefill of N tokens that stand before the picture, one after the other and at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.laboratory.first_token.stages import SIDE, STEPPED
from parity_tests.laboratory.process_end import end
from parity_tests.laboratory.serving_speed.__main__ import llama
from parity_tests.laboratory.serving_speed.gguf_files import gguf_files
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.package import read
from runtime_py.serving.client import Client, user_message

STAGES = Path(__file__).parent / "stages.py"
TREE = Path(__file__).resolve().parents[3]
FIRST = "first token"
OURS, OLDER, PICTURE, TEXT = "this tree", "older tree", "llama.cpp, with a picture", "llama.cpp, text of as many rows"


class Run:
    """A process of `stages`; ``first`` is what it said of its first round."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.first = self._line()

    def round(self, beside: int | None = None) -> dict[str, Any]:
        """A picture's stages; or the tower beside so many tokens of text before it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{'' if beside is None else beside}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextlib.contextmanager
def running(package: Path, tree: Path, threads: int, text: int) -> Iterator[Run]:
    """`stages` over a package by the ``runtime_py`` of a tree."""
    command = [sys.executable, str(STAGES), str(package.resolve()), str(threads), str(text)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, cwd=tree, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Run(process)
        finally:
            end(process)


def asked(client: Client, seed: int, text: int, picture: bool) -> float:
    """Seconds until llama.cpp's server has answered with one token."""
    draw = np.random.default_rng(seed)
    letters = "".join(chr(letter) for letter in draw.integers(97, 123, text))
    pictures = [draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)] if picture else []
    body = {"model": "m", "messages": user_message(letters, pictures), "max_tokens": 1, "temperature": 0.0}
    began = time.perf_counter()
    client.complete({**body, "cache_prompt": False, "ignore_eos": True})
    return time.perf_counter() - began


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What the first token after a picture is made of.")
    made.add_argument("--package", type=Path, required=True, metavar="DIR")
    made.add_argument("--rounds", type=flags.whole_number(1), default=3, metavar="N")
    made.add_argument("--times", type=flags.whole_number(1), default=2, metavar="N", help="counted questions a round")
    made.add_argument("--threads", type=flags.whole_number(1), default=2, metavar="N")
    made.add_argument("--text", type=flags.whole_number(1), default=32, metavar="N", help="tokens beside the picture's rows")
    made.add_argument("--before", type=flags.whole_number(1), metavar="N", help="the tower beside the prefill of N tokens")
    made.add_argument("--older-tree", type=Path, metavar="FOLDER")
    made.add_argument("--older-package", type=Path, metavar="DIR", help="of the older tree's own export")
    made.add_argument("--llama-python", type=Path, metavar="PYTHON", help="an interpreter with xllamacpp, gguf and NumPy")
    made.add_argument("--model", type=Path, metavar="CHECKPOINT", help="sizes for llama.cpp")
    made.add_argument("--gguf", type=Path, metavar="FOLDER", help="for its files")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    opened = read(given.package)
    if given.before:
        with running(given.package, TREE, given.threads, given.text) as run:
            overlaps = [run.round(given.before)["took"] for _ in range(given.rounds + 1)][1:]
        console.out("\n".join(lines({f"tower and {given.before} tokens before the picture": overlaps}, whole=False)))
        return 0
    trees = {OURS: (given.package, TREE)}
    if given.older_tree:
        trees[OLDER] = (given.older_package, given.older_tree)
    files: Sequence[Path] = ()
    if given.llama_python:
        files = gguf_files(given.llama_python, given.model, opened.limits.context, given.gguf)
    taken: dict[str, list[Mapping[str, float]]] = {name: [] for name in (*trees, *((PICTURE, TEXT) if files else ()))}
    first: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for turn in range(given.rounds):
        for name, (package, tree) in trees.items():
            with running(package, tree, given.threads, given.text) as run:
                first[name].append(run.first)
                taken[name] += [run.round()["took"] for _ in range(given.times)]
        if files:
            with llama(str(given.llama_python), files, given.threads, 1, opened.limits.context) as server:
                client, rows = Client(server.url), int(opened.runtime["queries"])
                for name, text in ((PICTURE, given.text), (TEXT, given.text + rows)):
                    waits = [asked(client, 100 * turn + time, text, name == PICTURE) for time in range(given.times + 1)]
                    taken[name] += [{FIRST: seconds} for seconds in waits[1:]]
    for name, told in first.items():
        kinds = ", ".join(f"{kind} {max(each[kind] for each in told) / 1e9:.2f} GB" for kind in ("VmRSS", "RssAnon"))
        cold = statistics.median(each["cold"] for each in told)
        console.out(f"{name}: first token with the opening of every stage {cold:.2f} s, and then {kinds}")
    console.out("\n".join(lines(taken)))
    return 0


def lines(taken: Mapping[str, Sequence[Mapping[str, float]]], whole: bool = True) -> Iterator[str]:
    """A row for each part: medians in milliseconds, least in brackets.

    Args:
        whole: a last row for the first token, which takes all but the step after it.
    """
    yield f"| | {' | '.join(taken)} |"
    yield "|---|" + "---|" * len(taken)
    shown = {name: [dict(each) for each in rounds] for name, rounds in taken.items()}
    if whole:
        for each in (each for rounds in shown.values() for each in rounds):
            each.setdefault(FIRST, sum(each.values()) - each.get(STEPPED, 0.0))
    for part in dict.fromkeys(part for rounds in shown.values() for part in rounds[0]):
        cells = []
        for rounds in shown.values():
            values = [1000 * each[part] for each in rounds if part in each]
            cells.append(f"{statistics.median(values):.0f} ({min(values):.0f})" if values else "")
        yield f"| {part} | {' | '.join(cells)} |"


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.first_token", arguments)


if __name__ == "__main__":
    sys.exit(main())
