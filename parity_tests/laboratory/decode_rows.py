"""What several rows in one decoder call cost and change, and what prompt lookup gains from them.

    python -m parity_tests.laboratory.decode_rows PACKAGE [--text FILE] [--threads 2] [--tokens 160]

PACKAGE has a tokenizer and any backend. Printed are the time of a call by its rows over that of one row, how far logits of
a text move when it is fed in rows instead of one by one, and answers with guesses beside answers without.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.generation.generate import Overrides
from runtime_py.model import Model, load

ROWS = (1, 2, 3, 4, 6, 8, 16)
HEAD = 64
"""Tokens of the text that are a prompt."""
ROUNDS = 10
GUESSES = 7
DATA = json.dumps(
    [{"name": f"item {n}", "price": 3 * n + 7, "colour": ("red", "green", "blue")[n % 3]} for n in range(14)], indent=1
)


def costs(model: Model, ids: np.ndarray) -> dict[int, float]:
    """Seconds of a call by its rows, behind the text; medians of interleaved rounds."""
    session = model.session
    model.reset()
    layout = model.processor.layout(ids[None, :-16], [])
    session.prefill(session.embed(layout.input_ids), layout)
    taken: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for turn in range(ROUNDS + 1):
        for rows in ROWS:
            began = time.perf_counter()
            session.verify_draft(ids[-rows:].tolist())
            if turn:
                taken[rows].append(time.perf_counter() - began)
            session.reject_draft()
    return {rows: statistics.median(seconds) for rows, seconds in taken.items()}


def logits(model: Model, ids: np.ndarray, rows: int) -> np.ndarray:
    """Of every token of the text behind `HEAD`, fed so many at a time: float32 (tokens, vocabulary)."""
    session = model.session
    model.reset()
    layout = model.processor.layout(ids[None, :HEAD], [])
    session.prefill(session.embed(layout.input_ids), layout)
    made = []
    for start in range(HEAD, len(ids), rows):
        part = ids[start : start + rows].tolist()
        made.append(session.verify_draft(part)[0])
        for _ in part:
            session.accept_draft_token()
    return np.concatenate(made)


def moved(alone: np.ndarray, among: np.ndarray) -> str:
    """How far logits are apart, and how often another token is best."""
    other = among.argmax(1) != alone.argmax(1)
    best = np.sort(alone, axis=1)
    lead = best[:, -1] - best[:, -2]
    return (
        f"largest difference {np.abs(among - alone).max():.4f}, standard deviation {alone.std(1).mean():.2f}, another best"
        f" token in {int(other.sum())} of {len(other)}, lead at most {lead[other].max(initial=0):.3f}"
    )


def answered(model: Model, question: str, tokens: int) -> str:
    """One greedy answer without guesses and with."""
    asked = Overrides(tokens, temperature=0.0, repetition_penalty=1.0, stop_ids=())
    made = []
    for chosen in (asked, replace(asked, prompt_lookup=GUESSES)) * 2:  # the first pair warms up
        model.reset()
        made.append(model.chat(question, overrides=chosen))
    plain, guessed = made[-2:]
    apart = [place for place, pair in enumerate(zip(plain.ids, guessed.ids, strict=True)) if pair[0] != pair[1]]
    gain = plain.timing.decode_seconds / guessed.timing.decode_seconds
    where = f"apart from token {apart[0] + 1} on" if apart else "equal"
    return f"{guessed.timing.guessed_tokens} of {tokens} guessed, {gain:.2f} times as fast, {where}"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time and difference of several rows in one decoder call, and what prompt lookup gains.")
    made.add_argument("package", type=Path, metavar="PACKAGE")
    made.add_argument("--text", type=Path, default=Path("docs/design.md"), metavar="FILE", help="default %(default)s")
    made.add_argument("--threads", type=int, default=0, metavar="N", help="computing threads; 0 leaves it to the backend")
    made.add_argument("--tokens", type=int, default=160, metavar="N", help="of each answer; default 160")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    text = given.text.read_text(encoding="utf-8")
    with load(given.package, None, "off", given.threads, trust=True) as model:
        most = min(700, model.package.limits.context - 16)
        ids = np.array(model.tokenizer.encode(text[3000:])[:most], np.int64)
        taken = costs(model, ids[:256])
        console.out("  ".join(f"{rows} rows {seconds / taken[1]:.2f}" for rows, seconds in taken.items()))
        alone = logits(model, ids, 1)
        for rows in (2, 8):
            console.out(f"{rows} rows at a time: {moved(alone, logits(model, ids, rows))}")
        passage = text[600:2000]
        questions = {
            "a text again": f"Repeat this text word for word:\n\n{passage}\n\nThe text again:\n\n{passage[:160]}",
            "data again": f"Here is a list:\n{DATA}\nWrite the same list again as JSON.\n{DATA[:200]}",
            "prose": "Write a story about a fox and a lighthouse keeper.",
        }
        for name, question in questions.items():
            console.out(f"{name}: {answered(model, question, given.tokens)}")
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.decode_rows", arguments)


if __name__ == "__main__":
    sys.exit(main())
