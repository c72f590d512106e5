"""What rounding alone does to models of the goldens' shapes, in PyTorch, with no package involved.

    python -m parity_tests.laboratory.golden_rounding --draws 20

Every tensor of a golden's checkpoint is shuffled, so that each draw is another random model of the same shape and scale. It
answers the golden's prompts in float32, and again in float16, with the decoder's inputs in int8 groups, with int4 weights
(`parity_tests.laboratory.observe_rounding`, which does the same for the trained demo checkpoints), and with those of a
phone, whose
embedding is int4 too. Printed are the worst value of each metric over all draws and prompts, and the one that nineteen of
twenty stay within: what a limit on random models must allow. ``layers.0`` is what leaves the decoder's first layer.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.backends.mlc.backend import QUANTISED_ROLES
from export.modules.build import layer_shapes
from export.quantisation.codes import DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from parity_tests.backends.registry import OF_THE_REFERENCE
from parity_tests.check.candidate import Candidate
from parity_tests.golden.case import question, read_case
from parity_tests.golden.inside import AskedOnce
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.metrics import HIGHER_IS_BETTER, LOGITS, Kind, measure
from parity_tests.judging.probes import Question, record
from parity_tests.laboratory.observe_rounding import sides
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER
from runtime_py.generation.session import Limits
from runtime_py.preprocess.base import Processor

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = (
    "minicpm-v",
    "minicpm-v-2",
    "omnilmm-12b",
    "wemm",
    "xverse-v",
    "awaker2.5-vl",
    "cogvlm2",
    "cogvlm2-video",
)
METRICS = ("relative_max", "worst_row_cosine", "mean_row_cosine", "kl_mean", "kl_median", "kl_max")
PHONE = "int4 weights of a phone"
PHONE_GRID = "q4f16_1"
FIRST_LAYER = "layers.0"
KEPT = "decoder.attend.frequencies"
STEPS, CONTEXT, TAIL = 6, 4096, 0.05

Key = tuple[str, str, str]
"""Way of rounding, probe, metric."""


class Shuffled:
    """A WeightProvider with every tensor's values in another order, but for rotary frequencies; draw 0 shuffles nothing."""

    def __init__(self, weights: WeightProvider, draw: int) -> None:
        self.weights, self.draw = weights, draw
        self._made: dict[str, Tensor] = {}

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        if target not in self._made:
            values = self.weights.tensor(target).float()
            order = torch.Generator().manual_seed(zlib.crc32(f"{target} {self.draw}".encode()))
            mixed = values.flatten()[torch.randperm(values.numel(), generator=order)].view(values.shape)
            self._made[target] = mixed if self.draw and target != KEPT else values
        return self._made[target]

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.tensor(target)[start:stop]


def phone_weights(spec: ModelSpec, weights: WeightProvider) -> WeightProvider:
    """Every matrix that a phone package stores in int4, rounded and back: decoder, head and embedding."""
    layers = [layer for layer in layer_shapes(spec) if layer.role in QUANTISED_ROLES]
    assignments = {layer.name: Assignment(layer, Storage.INT4, PHONE_GRID, "") for layer in layers}
    return DequantisedWeights(weights, RoundToNearest(weights, assignments, GRIDS), assignments, GRIDS)


def first_layer(backend: TorchBackend, processor: Processor, asked: Question) -> np.ndarray:
    """(1, tokens, hidden), what leaves the decoder's first layer, the whole prompt in one call."""
    side = Candidate(Path(), {}, OF_THE_REFERENCE, backend, processor, None, Limits(CONTEXT, CONTEXT))
    (values,) = AskedOnce(side, asked).values(DECODER, FIRST_LAYER)
    return values


def observe(name: str, draws: int) -> dict[Key, list[float]]:
    """Every value of every metric of the logits of one golden's shape."""
    folder = GOLDENS / name
    case, checkpoint = read_case(folder), open_checkpoint(folder)
    processor, limits = checkpoint.processor(), Limits(CONTEXT, CONTEXT)
    margins: dict[Key, list[float]] = {}
    for draw in range(draws):
        weights = Shuffled(checkpoint.weights, draw)
        exact, others = TorchBackend(checkpoint.spec, weights), dict(sides(checkpoint.spec, weights))
        others[PHONE] = TorchBackend(checkpoint.spec, phone_weights(checkpoint.spec, weights))
        for prefix in case.prefixes:
            asked = question(case, prefix, processor)
            expected = record(exact, processor, limits, asked, STEPS)
            first = first_layer(exact, processor, asked)
            for way, side in others.items():
                metrics = measure(Kind.FEATURES, first, first_layer(side, processor, asked))
                for metric in METRICS[:3]:
                    margins.setdefault((way, FIRST_LAYER, metric), []).append(metrics[metric])
                said = record(side, processor, limits, asked, STEPS, expected.fed)
                for row in compare_recordings(expected, said):
                    if row.kind in LOGITS:
                        for metric in METRICS:
                            margins.setdefault((way, row.probe, metric), []).append(row.metrics[metric])
    return margins


def lines(name: str, margins: dict[Key, list[float]]) -> Iterator[str]:
    """A table row for each way and probe; each cell the worst value and the tail's."""
    for way, probe in dict.fromkeys((way, probe) for way, probe, _ in margins):
        cells = []
        for metric in METRICS:
            if (way, probe, metric) not in margins:
                cells.append("")
                continue
            values = np.array(margins[way, probe, metric])
            low = HIGHER_IS_BETTER[metric]
            worst, tail = values.min() if low else values.max(), np.quantile(values, TAIL if low else 1 - TAIL)
            cells.append(f"{worst:.3g} ({tail:.3g})")
        yield f"| {name} | {way} | {probe} | " + " | ".join(cells) + " |"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What rounding alone does to models of the goldens' shapes, in PyTorch, with no package involved.")
    made.add_argument("--draws", type=int, default=20, help="random models of each shape (default: %(default)s)")
    made.add_argument("--case", action="append", choices=CASES, help="a golden; default: all of them")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    console.out("| case | rounding | array | " + " | ".join(METRICS) + " |\n" + "|---" * (3 + len(METRICS)) + "|")
    for name in given.case or CASES:
        for line in lines(name, observe(name, given.draws)):
            console.out(line)
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.golden_rounding", arguments)


if __name__ == "__main__":
    sys.exit(main())
