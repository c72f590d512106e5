"""Which part of a step is the engine's own, everything but the decoder call, by the answers in flight; and how long a long
prompt makes the others wait.

    python -m parity_tests.laboratory.engine_share PACKAGE [--at-a-time 1 4 8] [--steps 40] [--threads 1]
        [--provider NAME] [--repetition-penalty 1.2] [--temperature 0.7] [--likelihoods] [--long 800 --chunks 128 64 32]
        [--profile]

The engine alone, without HTTP and without threads: answers to random texts, counted once all of them are answering. With
``--long`` a prompt of so many letters arrives while the others answer, and the longest time between two of their tokens is
told for each size of chunk.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.engine.engine import Engine
from runtime_py.engine.logprobs import EngineEvent
from runtime_py.engine.preparation import Preparation
from runtime_py.engine.running import Running, Wish
from runtime_py.errors import EdgeproofError, ExitCode, MachineError
from runtime_py.generation.generate import Overrides, settings_of
from runtime_py.generation.session import Session
from runtime_py.model import Model, load
from runtime_py.preprocess.base import Message

LETTERS = 90
WARM = 5
"""Steps at the beginning that are not counted."""


@dataclass(frozen=True)
class Asked:
    """What every answer is asked for."""

    tokens: int
    penalty: float
    temperature: float
    likelihoods: bool


class Workshop:
    """One engine over a loaded package, and prompts that were never asked before."""

    def __init__(self, model: Model, slots: int, asked: Asked, chunk: int | None = None) -> None:
        self.model, self.asked = model, asked
        self.engine = Engine(model.backend, model.processor, model.package.limits, slots, chunk)
        self._preparation = Preparation(Session(model.backend, model.processor, model.package.limits))
        self._draw = np.random.default_rng(0)
        self.failed: list[EdgeproofError] = []

    def submit(self, letters: int = LETTERS, tokens: int | None = None) -> Running:
        """A question of so many random letters."""
        asked = self.asked
        text = "".join(chr(letter) for letter in self._draw.integers(97, 123, letters))
        chosen = Overrides(
            tokens or asked.tokens, temperature=asked.temperature, repetition_penalty=asked.penalty, seed=1, stop_ids=()
        )
        wish = Wish(settings_of(self.model.package.generation, chosen), top_logprobs=0 if asked.likelihoods else None)
        prompt = self._preparation.prepare([Message("user", text, ())], [])
        running = Running(prompt, wish, self.model.tokenizer, self._take)
        self.engine.submit(running)
        return running

    def answering(self, count: int) -> None:
        """Step until so many prompts are read."""
        all_of_them = [self.submit() for _ in range(count)]
        while any(running.waiting is None and not running.over for running in all_of_them):
            self.engine.step()
        self.check()

    def check(self) -> None:
        """Raise what ended an answer early."""
        if self.failed:
            raise self.failed[0]

    def _take(self, event: EngineEvent) -> None:
        if isinstance(event, EdgeproofError):
            self.failed.append(event)


def steps(workshop: Workshop, count: int, number: int) -> list[tuple[float, float]]:
    """Seconds of each step and of the decoder call in it."""
    workshop.engine.forget()
    workshop.answering(count)
    taken = []
    for _ in range(number + WARM):
        before, began = workshop.engine.decoder_seconds, time.perf_counter()
        workshop.engine.step()
        taken.append((time.perf_counter() - began, workshop.engine.decoder_seconds - before))
    workshop.check()
    return taken[WARM:]


def share_line(count: int, taken: Sequence[tuple[float, float]]) -> str:
    """A row of the table: medians in milliseconds, and the share of all time."""
    whole, decoder = (sum(column) for column in zip(*taken, strict=True))
    step, call, own = (
        1000 * statistics.median(values)
        for values in ([t for t, _ in taken], [d for _, d in taken], [t - d for t, d in taken])
    )
    return f"| {count} | {step:.2f} | {call:.2f} | {own:.3f} | {1 - decoder / whole:.1%} |"


def gaps(model: Model, slots: int, asked: Asked, chunk: int, long: int) -> tuple[float, float, float]:
    """Milliseconds between two tokens of the others while a long prompt is read (median, longest), seconds until it is."""
    workshop = Workshop(model, slots, asked, chunk)
    workshop.answering(slots - 1)
    late = workshop.submit(long, tokens=1)
    between, began = [], time.perf_counter()
    while not late.over:
        last = time.perf_counter()
        workshop.engine.step()
        between.append(1000 * (time.perf_counter() - last))
    workshop.check()
    return statistics.median(between), max(between), time.perf_counter() - began


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "The engine's own part of a step.")
    made.add_argument("package", metavar="PACKAGE", help="one that an engine can batch")
    made.add_argument(
        "--at-a-time", type=flags.whole_number(1), nargs="+", default=[1, 4, 8], metavar="N", help="default 1 4 8"
    )
    made.add_argument("--steps", type=flags.whole_number(2), default=40, metavar="N", help="counted; default 40")
    made.add_argument("--threads", type=flags.whole_number(1), default=1, metavar="N", help="of the decoder; default 1")
    made.add_argument("--provider", action="append", metavar="NAME", help="ONNX Runtime provider, best first; repeatable")
    made.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="default 1, none")
    made.add_argument("--temperature", type=float, default=0.0, metavar="X", help="default 0; the package's top-k and top-p")
    made.add_argument("--likelihoods", action="store_true", help="tell every token's, as logprobs of a request does")
    made.add_argument("--long", type=flags.whole_number(1), metavar="N", help="letters of a prompt that comes late")
    made.add_argument(
        "--chunks",
        type=flags.whole_number(1),
        nargs="+",
        default=[128, 64, 32],
        metavar="N",
        help="of it; default 128 64 32",
    )
    made.add_argument("--profile", action="store_true", help="where the time of the last level went, by function")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    levels = options.at_a_time
    asked = Asked(
        options.steps + WARM + 4 * max(levels) + 8, options.repetition_penalty, options.temperature, options.likelihoods
    )
    with load(options.package, threads=options.threads, providers=options.provider) as model:
        workshop = Workshop(model, max(levels), asked)
        if max(levels) > 1 and not workshop.engine.shares_calls:
            raise MachineError(workshop.engine.notice, "a package whose sequences share calls", "choose another")
        console.out("| in flight | step, ms | decoder call, ms | beside it, ms | share |\n|---|---|---|---|---|")
        for count in levels:
            watch = cProfile.Profile() if options.profile and count == levels[-1] else None
            if watch is not None:
                watch.enable()
            taken = steps(workshop, count, options.steps)
            if watch is not None:
                watch.disable()
            console.out(share_line(count, taken))
            if watch is not None:
                pstats.Stats(watch, stream=sys.stdout).sort_stats("tottime").print_stats(40)
        for chunk in options.chunks if options.long else ():
            one, most, until = gaps(model, max(levels), asked, chunk, options.long)
            console.out(
                f"{max(levels) - 1} answering, a prompt of {options.long} letters in chunks of {chunk}: median {one:.0f} ms"
                f" between two tokens, longest {most:.0f}; its first token after {until:.2f} s"
            )
    return int(ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.engine_share", arguments)


if __name__ == "__main__":
    sys.exit(main())
