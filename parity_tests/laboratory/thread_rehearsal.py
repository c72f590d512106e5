"""Ask one loaded package from many threads at once, and compare every answer with the one it gives alone.

    python -m parity_tests.laboratory.thread_rehearsal --package DIR [--threads 8] [--chats 25] [--trust]

Half of the chats stream through `generate`, which another thread may overtake: such an answer must say so. Exit code 0 when
every answer is right or a clear error, 5 when one is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import EdgeproofError, ExitCode
from runtime_py.generation.generate import Overrides
from runtime_py.model import Model, load

QUESTIONS = ("What colour is it?", "How many shapes are there?", "Where is the circle?", "Is it red?", "Hello", "Name it.")
NEW_TOKENS = 8

Question = tuple[str, int]
"""A text, and which of the pictures goes with it; -1 for none."""


def questions(pictures: int) -> list[Question]:
    """Every text with every picture and without one."""
    return [(text, picture) for text in QUESTIONS for picture in range(-1, pictures)]


def rehearse(model: Model, threads: int, chats: int) -> Counter[str]:
    """How many answers of ``threads`` x ``chats`` were ``right``, ``refused`` with a clear error, or ``wrong``."""
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (60, 40, 3), dtype=np.uint8) for _ in range(2)]
    choices = questions(len(pictures))
    overrides = Overrides(max_new_tokens=NEW_TOKENS, temperature=0.0, repetition_penalty=1.0)

    def given(question: Question) -> list[np.ndarray]:
        return [pictures[question[1]]] if question[1] >= 0 else []

    alone = {question: model.chat(question[0], given(question), overrides=overrides).ids for question in choices}

    def work(thread: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        order = np.random.default_rng(thread).integers(0, len(choices), chats)
        for number, index in enumerate(order):
            question = choices[index]
            try:
                if number % 2:
                    run = model.generate(question[0], given(question), overrides)
                    ids = tuple(token.id for token in run)
                else:
                    ids = model.chat(question[0], given(question), overrides=overrides).ids
            except EdgeproofError as error:
                outcomes["refused" if "left for another one" in error.what else f"failed: {error.what}"] += 1
            else:
                outcomes["right" if ids == alone[question] else "wrong"] += 1
        return outcomes

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(work, range(threads)), Counter())


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Ask one loaded package from many threads at once, and compare with what it says alone.")
    flags.package(made)
    made.add_argument("--backend", help="instead of the package's own choice")
    made.add_argument("--threads", type=flags.whole_number(1), default=8, metavar="N", help="default 8")
    made.add_argument("--chats", type=flags.whole_number(1), default=25, metavar="N", help="of each thread; default 25")
    flags.trust(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    with load(options.package, options.backend, trust=options.trust) as model:
        outcomes = rehearse(model, options.threads, options.chats)
        name = model.backend.name
    total = options.threads * options.chats
    counts = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
    console.out(f"{name}: {total} answers in {options.threads} threads: {counts} ({time.monotonic() - began:.0f} s)")
    whole = outcomes["right"] + outcomes["refused"] == total
    return int(ExitCode.OK if whole else ExitCode.PARITY_FAILED)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.thread_rehearsal", arguments)


if __name__ == "__main__":
    sys.exit(main())
