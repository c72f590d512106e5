"""How soon the first token of a second question about a picture comes, beside the first one's, and is its answer the same?

    python -m parity_tests.laboratory.known_picture --package DIR [--threads 2] [--pictures 3] [--new-tokens 8]

Starts a server of the package and asks two questions about each of a few drawn pictures, one after the other; a client's own
clock says when a first token came. Then the package answers the second questions alone, from nothing. Exit code 0 when
every answer is equal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_tests.laboratory.served import served
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.generation.generate import Overrides
from runtime_py.model import load
from runtime_py.serving.client import Client, user_message

QUESTIONS = ("What is in the picture?", "Which colours does it have?")


@dataclass(frozen=True)
class Asked:
    """An answer's text, seconds to its first token, and prompt tokens, ``cached`` of them known already."""

    text: str
    first: float
    tokens: int
    cached: int


def ask(client: Client, model: str, text: str, picture: np.ndarray, new_tokens: int) -> Asked:
    """One streamed answer."""
    body = {
        "model": model,
        "messages": user_message(text, [picture]),
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "logprobs": True,
        "stream_options": {"include_usage": True},
    }
    began, first, said = time.perf_counter(), 0.0, ""
    usage: dict[str, Any] = {}
    for chunk in client.stream(body):
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if choice.get("logprobs") and not first:
                first = time.perf_counter() - began
            said += choice["delta"].get("content") or ""
    return Asked(said, first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "The first token of a second question about a picture.")
    flags.package(made)
    made.add_argument("--threads", type=flags.whole_number(1), default=2, metavar="N")
    made.add_argument("--pictures", type=flags.whole_number(1), default=3, metavar="N")
    made.add_argument("--new-tokens", type=flags.whole_number(1), default=8, metavar="N")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (448, 448, 3), dtype=np.uint8) for _ in range(options.pictures + 1)]
    pairs: list[tuple[Asked, Asked]] = []
    with served(options.package, ["--threads", str(options.threads), "--slots", "2"]) as server:
        client = Client(server.url)
        for picture in pictures:  # the first one opens what is opened when first used
            first, second = (ask(client, server.name, text, picture, options.new_tokens) for text in QUESTIONS)
            pairs.append((first, second))
    wanted = Overrides(options.new_tokens, temperature=0.0, repetition_penalty=1.0, stop_ids=())
    equal = 0
    with load(options.package, threads=options.threads) as model:
        for picture, (_, second) in zip(pictures[1:], pairs[1:], strict=True):
            model.reset()
            equal += model.chat(QUESTIONS[1], [picture], overrides=wanted).text == second.text.strip()
    for first, second in pairs[1:]:
        console.out(
            f"first question {first.first:.3f} s ({first.tokens} tokens), second {second.first:.3f} s "
            f"({second.tokens} tokens, {second.cached} known): {second.first / first.first:.1%}"
        )
    share = statistics.median(second.first / first.first for first, second in pairs[1:])
    console.out(f"median {share:.1%}; {equal} of {options.pictures} second answers are those without a cache")
    return int(ExitCode.OK if equal == options.pictures else ExitCode.PARITY_FAILED)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.known_picture", arguments)


if __name__ == "__main__":
    sys.exit(main())
