"""What choosing a token costs, by the vocabulary and by what is asked.

    python -m parity_tests.laboratory.choice_speed [--vocabulary 32768 151936] [--rounds 20]

Random logits and an answer of a hundred tokens; microseconds of one row, the best of the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.generation.sampler import Sampler, Sampling

ANSWER = 100
DEVIATION = 3.0
"""Of the logits, about that of a trained decoder."""

ASKED = {
    "greedy": Sampling(),
    "repetition penalty 1.2": Sampling(repetition_penalty=1.2),
    "temperature 0.7, top-k 100, top-p 0.8, penalty 1.2": Sampling(0.7, 100, 0.8, 1.2, seed=1),
    "temperature 0.7, top-p 0.9": Sampling(0.7, top_p=0.9, seed=1),
    "temperature 0.7": Sampling(0.7, seed=1),
}


def cost(sampling: Sampling, logits: np.ndarray, answer: Sequence[int], rounds: int) -> float:
    """Microseconds of a choice."""
    sampler, best = Sampler(sampling), float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        sampler.choose(logits, answer)
        best = min(best, time.perf_counter() - began)
    return 1e6 * best


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What choosing a token costs.")
    made.add_argument(
        "--vocabulary",
        type=flags.whole_number(2),
        nargs="+",
        default=[32768, 151936],
        metavar="N",
        help="default 32768 151936",
    )
    made.add_argument("--rounds", type=flags.whole_number(1), default=20, metavar="N", help="default 20")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    draw = np.random.default_rng(0)
    rows = [(draw.normal(0, DEVIATION, size).astype(np.float32), size) for size in options.vocabulary]
    console.out("| what is asked | " + " | ".join(f"{size:,} tokens, us" for _, size in rows) + " |")
    console.out("|---" * (len(rows) + 1) + "|")
    for name, sampling in ASKED.items():
        costs = (cost(sampling, row, draw.integers(0, size, ANSWER).tolist(), options.rounds) for row, size in rows)
        console.out(f"| {name} | " + " | ".join(f"{each:,.0f}" for each in costs) + " |")
    return int(ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.choice_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
