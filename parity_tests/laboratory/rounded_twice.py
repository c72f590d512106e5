"""What an int4 package loses that is made of a checkpoint quantised by bitsandbytes, beside one of the full checkpoint.

    python -m parity_tests.laboratory.rounded_twice [--model cogvlm2] [--pictures 40] [--steps 12] [--kind nf4] [--plain]
        [--target cpu] [--precision int4]

Each checkpoint (a demo, or a folder with a tokenizer) is quantised as transformers does it (`bitsandbytes_checkpoint`), and
both are exported. The full checkpoint in float32 answers held-out questions greedily; the quantised one in float32 and both
packages are fed the same tokens. A row of the table is how far what they say next is from the full model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from export.pipeline import export
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.judging.probes import record
from parity_tests.laboratory.bitsandbytes_checkpoint import SKIPPED, Form, form_flags, form_of, quantise
from parity_tests.laboratory.observe_rounding import CONTEXT, questions
from parity_tests.laboratory.text_distance import apart
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py import tokenizer as tokenizers
from runtime_py.backends.base import Backend
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.generation.session import Limits

QUANTISED, OF_FULL, OF_QUANTISED = "quantised, float32", "package of the full one", "package of the quantised one"


def packages(full: Path, form: Form, request: ExportRequest, work: Path) -> tuple[Checkpoint, Mapping[str, Candidate]]:
    """The quantised checkpoint, and a package of each of the two."""
    quantise(full, work / "quantised", form)
    made = {}
    for name, folder in ((OF_FULL, full), (OF_QUANTISED, work / "quantised")):
        output = work / f"{name}-package"
        export(replace(request, model=str(folder), output=output, skip_verify=True), None)
        made[name] = open_candidate(output, trust=True)
    return open_checkpoint(work / "quantised"), made


def answers(
    full: Checkpoint, others: Mapping[str, Backend], pictures: int, steps: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Log probabilities (steps, vocabulary) of the full model and of another, by the other's name."""
    processor = full.processor(tokenizers.load(full.folder))
    limits, reference = Limits(CONTEXT, CONTEXT), TorchBackend(full.spec, full.weights)
    for question in questions(full, pictures):
        expected = record(reference, processor, limits, question, steps)
        for name, backend in others.items():
            said = record(backend, processor, limits, question, steps, expected.arrays["greedy_ids"])
            ours, theirs = (torch.from_numpy(one.arrays["step_logits"][0]).double() for one in (expected, said))
            yield name, ours.log_softmax(-1), theirs.log_softmax(-1)


def measured(
    folder: Path, form: Form, request: ExportRequest, pictures: int, steps: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """All rows of `answers` of one checkpoint, by who gave them."""
    rows: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    with tempfile.TemporaryDirectory() as work:
        quantised, made = packages(folder, form, request, Path(work))
        others: dict[str, Backend] = {QUANTISED: TorchBackend(quantised.spec, quantised.weights)}
        others |= {name: candidate.backend for name, candidate in made.items()}
        for name, expected, said in answers(open_checkpoint(folder), others, pictures, steps):
            kept = rows.setdefault(name, ([], []))
            kept[0].append(expected)
            kept[1].append(said)
        for candidate in made.values():
            candidate.release()
    return {name: (torch.cat(expected), torch.cat(said)) for name, (expected, said) in rows.items()}


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What a package of a quantised checkpoint loses beside one of the full checkpoint.")
    made.add_argument("--model", action="append", help="a demo checkpoint, or a checkpoint's folder; default: cogvlm2")
    made.add_argument("--pictures", type=int, default=40, metavar="N", help="questions of each checkpoint; default 40")
    made.add_argument("--steps", type=int, default=12, metavar="N", help="answer tokens of a question; default 12")
    made.add_argument("--target", default="cpu", help="default cpu")
    made.add_argument("--precision", default="int4", help="default int4")
    form_flags(made)
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    form = form_of(given)
    how = form.kind if form.kind == "int8" else f"{form.kind}{', nested' if form.nested else ''}"
    console.out(f"quantised as {how}, without {', '.join(SKIPPED)}; packages of {given.target} {given.precision}")
    console.out("| checkpoint | | mean KL | median | same best |")
    console.out("|---" * 5 + "|")
    for model in given.model or ["cogvlm2"]:
        folder = DEMO_FOLDER / model if (DEMO_FOLDER / model).is_dir() else Path(model).resolve()
        request = ExportRequest(str(folder), given.target, precision=given.precision)
        for name, (expected, said) in measured(folder, form, request, given.pictures, given.steps).items():
            console.out(f"| {folder.name} | {name} | {apart(expected, said)} |")
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.rounded_twice", arguments)


if __name__ == "__main__":
    sys.exit(main())
