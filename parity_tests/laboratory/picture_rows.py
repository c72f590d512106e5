"""Why one picture row of a trained decoder is further off than the others: where in its blocks the distance grows.

    python -m parity_tests.laboratory.picture_rows PACKAGE CHECKPOINT [--data DIR] [--question NAME] [--row N]

A trained decoder gives its first token one or two channels thousands of times larger than the rest (Sun et al., Massive
Activations in Large Language Models, arXiv 2402.17762): one layer's down projection switches them on. What a picture puts
in may stand where that layer is about to do so too, and there every rounding is made many times larger. First come the rows
whose logits are furthest off, then one row's distance from float64 block by block: of the reference in float32, of the
package's copy that does not round, and of the package, each beside the median row's. Every row that a block gives a value
`MASSIVE` times as large as the median row's is named with both sides' values: what later tokens attend to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.own_questions import own_questions, read_data
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.check.sides import Sides, open_sides
from parity_tests.judging.metrics import centred, kl_divergence, row_cosines, row_errors
from parity_tests.judging.probes import Question
from parity_tests.localize.localize import run_stage, stage_calls
from parity_tests.localize.onnx_blocks import OnnxStage
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Arrays
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER
from runtime_py.errors import UsageError

SHOWN, STEPS = 4, 8
"""Rows that are shown, and answer tokens that the questions leave room for."""

MASSIVE = 20
"""Times the median row's largest value from which a row's is called a massive activation."""


def furthest(expected: np.ndarray, said: np.ndarray, pictures: np.ndarray) -> Iterator[str]:
    """Table rows: those of `SHOWN` rows of logits that are furthest off, and the median row's figures.

    Args:
        expected, said: (tokens, vocabulary), float.
        pictures: bool (tokens,).
    """
    wide, other = centred(expected), centred(said)
    far = np.abs(wide - other).max(-1) / np.abs(wide).max()
    turned, nats = 1 - row_cosines(wide, other), kl_divergence(expected, said)
    for row in np.argsort(-far)[:SHOWN]:
        kind = "picture" if pictures[row] else "text"
        yield f"| {row} ({kind}) | {far[row]:.1e} | {turned[row]:.1e} | {nats[row]:.1e} |"
    for kind, chosen in (("picture", pictures), ("text", ~pictures)):
        if chosen.any():
            figures = [np.median(values[chosen]) for values in (far, turned, nats)]
            yield f"| median ({kind}) | " + " | ".join(f"{value:.1e}" for value in figures) + " |"


def grown(sides: Sides, inputs: Arrays, row: int) -> Iterator[str]:
    """Table rows: block by block, how far a row is from float64; then the rows with massive activations."""
    stored = sides.nearest
    exact = TorchBackend(stored.spec, stored.weights, torch.float64, arithmetic=stored.arithmetic)
    true = exact.block_outputs(DECODER, inputs)
    told: dict[str, Mapping[str, np.ndarray]] = {"reference": stored.block_outputs(DECODER, inputs)}
    for name, side in _packages(sides).items():
        told[name] = OnnxStage(side, DECODER).blocks(inputs)
    switched: dict[str, str] = {}
    before: tuple[int, ...] = ()
    for block, values in true.items():
        rows = values.reshape(-1, values.shape[-1])
        if not all(block in outputs for outputs in told.values()) or len(rows) <= row:
            continue
        largest = np.abs(rows).max(-1)
        errors = [row_errors(rows, outputs[block].reshape(rows.shape)) for outputs in told.values()]
        figures = " | ".join(f"{error[row]:.1e} ({np.median(error):.1e})" for error in errors)
        yield f"| {block} | {largest.max():.0f} ({largest.argmax()}) | {largest[row]:.0f} | {figures} |"
        said = np.abs(told[list(told)[-1]][block].reshape(rows.shape)).max(-1)
        massive = tuple(np.flatnonzero(largest > MASSIVE * np.median(largest)).tolist())
        if massive != before:
            named = ", ".join(f"row {at} {largest[at]:.0f} -> {said[at]:.0f}" for at in massive)
            switched[block], before = named or "none", massive
    yield from (
        "",
        "Rows with a massive activation, in float64 and in the package, where other rows have one than a block before:",
        "",
    )
    yield from (f"- {block}: {rows_named}" for block, rows_named in switched.items())


def _packages(sides: Sides) -> dict[str, Candidate]:
    exact = {} if sides.exact is None else {"copy in float32": sides.exact}
    return {**exact, "package": sides.package}


def report(sides: Sides, question: Question, row: int | None) -> Iterator[str]:
    """The report, line by line."""
    call = stage_calls(sides.nearest, sides.package, question)[DECODER]
    inputs, tokens = call.inputs, call.inputs["inputs_embeds"].shape[1]
    text = np.ones(tokens, bool) if call.text is None else call.text
    expected, worst = call.output[0], row
    for name, side in _packages(sides).items():
        said = run_stage(side, DECODER, inputs)[0]
        far = np.abs(centred(expected) - centred(said)).max(-1)
        worst = int(np.where(text, 0, far).argmax()) if worst is None else worst
        yield from ("", f"Logits of {question.name}, {name} against the reference with the same numbers:", "")
        yield from ("| row | relative to the largest logit | 1 - cosine | KL |", "|---|---|---|---|")
        yield from furthest(expected, said, ~text)
        side.release()
    sides_named = " | ".join(["reference in float32", *_packages(sides)])
    yield from ("", f"Row {worst} block by block, its distance from float64 over its length (the median row's):", "")
    yield f"| block | largest value (its row) | largest of row {worst} | {sides_named} |"
    yield "|---" * (4 + len(_packages(sides))) + "|"
    yield from grown(sides, inputs, 0 if worst is None else worst)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Where in a decoder's blocks a picture row is driven apart.")
    made.add_argument("package", type=Path, metavar="PACKAGE", help="a package of ONNX graphs")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what it was made from")
    made.add_argument(
        "--data", type=Path, metavar="DIR", help="pictures and questions of your own, as parity_tests takes them"
    )
    made.add_argument("--question", metavar="NAME", help="wide, tall or text, or an own one's name (default: the first)")
    made.add_argument("--row", type=int, metavar="N", help="of the prompt (default: the picture row furthest off)")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    checkpoint = open_checkpoint(given.checkpoint)
    candidate = open_candidate(given.package)
    try:
        processor = checkpoint.processor(candidate.tokenizer or stand_in(candidate.manifest))
        if given.data is None:
            asked = questions(processor, 3, candidate.limits.context, STEPS, None)
        else:
            asked = own_questions(read_data(given.data), processor, candidate.limits.context, STEPS)
        question = next((one for one in asked if given.question in (None, one.name)), None)
        if question is None:
            names = ", ".join(one.name for one in asked)
            raise UsageError(f"no question is named {given.question}", f"one of {names}", "correct the name")
        for line in report(open_sides(candidate, checkpoint, processor, "cpu"), question, given.row):
            console.out(line)
    finally:
        candidate.backend.close()
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.picture_rows", arguments)


if __name__ == "__main__":
    sys.exit(main())
