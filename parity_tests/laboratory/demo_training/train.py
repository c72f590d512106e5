"""Train the demo checkpoint of a family on drawn pictures.

    python -m parity_tests.laboratory.demo_training.train --model minicpm-v -o export/demo/checkpoints/minicpm-v

What is trained are the published tensors. Beside the answers, throw-away heads learn what lies under each patch and in
each row of image features, which gives the vision tower and the connector a signal long before the decoder can use
them. Towards the end, matrices pass through int4 rounding with straight-through gradients in most steps.
Equal seed, steps and thread count give equal weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from export.demo.accuracy import HELD_OUT_SEED, Case, held_out, score
from export.demo.published import write_checkpoint
from export.demo.quantisation import mlc_rounded
from export.demo.questions import KINDS as QUESTION_KINDS
from export.demo.recipes.base import Recipe
from export.demo.reference import recipe_of
from parity_tests.laboratory.demo_training.plan import Plan
from parity_tests.laboratory.demo_training.trainer import Trainer
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import UsageError

log = logging.getLogger("parity_tests.laboratory.demo_training.train")


def train(
    recipe: Recipe, plan: Plan, output: Path, state: Path | None, report_every: int, held_out_pictures: int = 48
) -> None:
    """Train to the end of the plan, logging held-out accuracy, and write the checkpoint to ``output``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in recipe.side_files().items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        trainer = Trainer(recipe, plan, Path(folder))
    if state is not None and state.is_file():
        trainer.restore(torch.load(state, weights_only=True))
        log.info("resumed after step %d", trainer.done)
    cases = held_out(held_out_pictures, recipe.side, seed=HELD_OUT_SEED + 1, digits=recipe.digits)
    started, first = time.monotonic(), trainer.done
    sums: dict[str, float] = {}
    while trainer.done < plan.steps:
        for name, value in trainer.step().items():
            sums[name] = 0.95 * sums.get(name, value) + 0.05 * value
        if trainer.done % 25 == 0:
            pace = (time.monotonic() - started) / (trainer.done - first)
            losses = " ".join(f"{name} {value:.3f}" for name, value in sums.items())
            log.info("step %d of %d, %.2f s each, %s", trainer.done, plan.steps, pace, losses)
        if trainer.done % report_every == 0 or trainer.done == plan.steps:
            if trainer.done > plan.seeing:
                _report(trainer, cases)
                log.info("wrote %s, %d bytes", output, write_checkpoint(output, recipe, trainer.tensors))
            if state is not None:
                partial = state.with_suffix(".partial")
                torch.save(trainer.state(), partial)
                partial.replace(state)


def _report(trainer: Trainer, cases: list[Case]) -> None:
    """Log held-out accuracy, plain and with int4 weights."""
    asked = [(case.picture, case.question.text) for case in cases]
    parts = []
    for name, rounded in (("plain", frozenset()), ("int4", trainer.language), ("int4 everywhere", trainer.everything)):
        with torch.no_grad():
            trainer.stages.derive(trainer.tensors, rounded, mlc_rounded)
        result = score(cases, trainer.reference.answers(asked))
        kinds = " ".join(f"{kind} {result.share([kind]):.2f}" for kind in QUESTION_KINDS)
        parts.append(f"{name}: {result.share():.3f} ({kinds})")
    log.info("step %d held out, %s", trainer.done, "; ".join(parts))


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Train a demo checkpoint.")
    made.add_argument("--model", default="minicpm-v", help="family name (default minicpm-v)")
    made.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder to write")
    made.add_argument("--seeing", type=int, help=f"steps of seeing alone (default: the recipe's, else {Plan.seeing})")
    made.add_argument("--answering", type=int, help=f"steps after that (default: the recipe's, else {Plan.answering})")
    flags.seed(made, "of everything", default=1)
    made.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    made.add_argument("--state", type=Path, help="file to keep the run's state in, and to go on from")
    made.add_argument("--report-every", type=int, default=150, help="steps between accuracy reports (default 150)")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    options.seed = flags.seed_number(options.seed)
    if options.seed in (HELD_OUT_SEED, HELD_OUT_SEED + 1):
        raise UsageError(f"seed {options.seed} draws the held-out pictures", "any other seed", "choose another --seed")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    recipe = recipe_of(options.model)
    asked = {name: getattr(options, name) for name in ("seeing", "answering") if getattr(options, name) is not None}
    plan = replace(Plan(seed=options.seed), **{**recipe.plan, **asked})
    train(recipe, plan, options.output, options.state, options.report_every)
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.demo_training.train", arguments)


if __name__ == "__main__":
    sys.exit(main())
