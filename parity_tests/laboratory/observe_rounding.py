"""What rounding alone does to a model, in PyTorch, with no package involved: the figures behind `parity_tests.thresholds`.

    python -m parity_tests.laboratory.observe_rounding --pictures 100

Every demo checkpoint answers questions about held-out pictures in float32, and again with the same modules in float16,
with inputs of the decoder's layers rounded to int8 in groups of 32, and with int4 weights. Printed is the worst value of
each metric over all questions. Trained models matter here: their logits reach
30, random ones 7, and KL grows with the square.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from calibrate.samples.data import built_in
from export.demo.accuracy import held_out
from export.demo.reference import recipe_of
from export.modules.build import layer_shapes
from export.quantisation.codes import DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.source.hub import DEMO_FOLDER
from export.specs import ModelSpec
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind
from parity_tests.judging.probes import Question, record
from parity_tests.reference.arithmetic import Arithmetic
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend
from parity_tests.reference.roundings import Int8Groups
from runtime_py import tokenizer as tokenizers
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits
from runtime_py.preprocess.base import Message

METRICS = (
    "relative_max", "worst_row_cosine", "mean_row_cosine", "kl_mean", "kl_median", "kl_max", "flipped_relative",
    "split_relative",
)  # fmt: skip
GRID = "ort_int4_b32"
STEPS = 6
CONTEXT = 2048


def int8_inputs(spec: ModelSpec) -> Arithmetic:
    """Inputs of the decoder's layers rounded as MatMulNBits rounds them."""
    layers = [layer.name for layer in layer_shapes(spec) if layer.name.startswith(f"{DECODER}.")]
    return Arithmetic(dict.fromkeys(layers, Int8Groups()))


def rounded_weights(spec: ModelSpec, weights: WeightProvider) -> WeightProvider:
    """The decoder's matrices rounded to int4 and back."""
    layers = [layer for layer in layer_shapes(spec) if layer.name.startswith(f"{DECODER}.")]
    assignments = {layer.name: Assignment(layer, Storage.INT4, GRID, "") for layer in layers}
    return DequantisedWeights(weights, RoundToNearest(weights, assignments, GRIDS), assignments, GRIDS)


def sides(spec: ModelSpec, weights: WeightProvider) -> dict[str, TorchBackend]:
    """The three ways of rounding by name."""
    return {
        "float16": TorchBackend(spec, weights, torch.float16),
        "int8 inputs": TorchBackend(spec, weights, arithmetic=int8_inputs(spec)),
        "int4 weights": TorchBackend(spec, rounded_weights(spec, weights)),
    }


def questions(checkpoint: Checkpoint, pictures: int) -> Iterator[Question]:
    """One held-out question of the demo's task for each picture; of another checkpoint, what the general samples ask."""
    processor = checkpoint.processor(tokenizers.load(checkpoint.folder))
    if checkpoint.folder.parent != DEMO_FOLDER:
        for number, sample in enumerate(built_in(pictures, 0, side=checkpoint.spec.image.overview)):
            ids = processor.encode(sample.messages[:1], processor.images(sample.pictures))
            yield Question(str(number), sample.pictures, ids, sample.messages[0].text)
        return
    recipe = recipe_of(checkpoint.spec.family)
    cases = held_out(pictures, recipe.side, digits=recipe.digits)
    for number, case in enumerate(cases[:: max(1, len(cases) // pictures)]):
        images = processor.images((case.picture,))
        ids = processor.encode([Message("user", case.question.text, (0,))], images)
        yield Question(str(number), (case.picture,), ids, case.question.text)


def observe(folder: Path, pictures: int) -> dict[tuple[str, Kind, str], float]:
    """The worst value of each metric by (side, kind of array, metric) for one checkpoint."""
    checkpoint = open_checkpoint(folder)
    processor = checkpoint.processor(tokenizers.load(folder))
    limits = Limits(CONTEXT, CONTEXT)
    reference, others = TorchBackend(checkpoint.spec, checkpoint.weights), sides(checkpoint.spec, checkpoint.weights)
    worst: dict[tuple[str, Kind, str], float] = {}
    for question in questions(checkpoint, pictures):
        expected = record(reference, processor, limits, question, STEPS)
        for name, side in others.items():
            said = record(side, processor, limits, question, STEPS, expected.arrays["greedy_ids"])
            for row in compare_recordings(expected, said):
                for metric in METRICS:
                    if metric in row.metrics:
                        key = (name, row.kind, metric)
                        pick = min if HIGHER_IS_BETTER[metric] else max
                        worst[key] = pick(worst.get(key, row.metrics[metric]), row.metrics[metric])
    return worst


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What rounding alone does to the answers of the trained demos.")
    made.add_argument("--pictures", type=int, default=100, help="questions asked of each checkpoint (default 100)")
    made.add_argument("--model", action="append", help="a demo checkpoint, or a checkpoint's folder; default: all demos")
    flags.talk(made)
    return made


def _run(arguments: argparse.Namespace) -> int:
    models = arguments.model or sorted(path.name for path in DEMO_FOLDER.iterdir() if path.is_dir())
    console.out("| checkpoint | rounding | array | " + " | ".join(METRICS) + " |")
    console.out("|---" * (3 + len(METRICS)) + "|")
    for model in models:
        worst = observe(DEMO_FOLDER / model if (DEMO_FOLDER / model).is_dir() else Path(model).resolve(), arguments.pictures)
        for side, kind in dict.fromkeys((side, kind) for side, kind, _ in worst):
            cells = [f"{worst[side, kind, m]:.4g}" if (side, kind, m) in worst else "" for m in METRICS]
            console.out(f"| {Path(model).name} | {side} | {kind} | " + " | ".join(cells) + " |")
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.observe_rounding", arguments)


if __name__ == "__main__":
    sys.exit(main())
