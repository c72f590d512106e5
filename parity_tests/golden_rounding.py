"""What rounding alone does to models of the goldens' shapes, in PyTorch, with no package involved.

    python -m parity_tests.golden_rounding --draws 20

Every tensor of a golden's checkpoint is shuffled, so that each draw is another random model of the same shape and scale. It
answers the golden's prompts in float32, and again in float16, with the decoder's inputs in int8 groups, with int4 weights
(`parity_tests.observe_rounding`, which does the same for the trained demo checkpoints). Printed are the worst value of each
metric over all draws and prompts, and the one that nineteen of twenty stay within: what a limit on random models must allow.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibrate.codes import WeightProvider
from parity_tests.checkpoint_side import open_checkpoint
from parity_tests.compare import compare_recordings
from parity_tests.golden_case import question, read_case
from parity_tests.metrics import HIGHER_IS_BETTER
from parity_tests.observe_rounding import sides
from parity_tests.probes import record
from parity_tests.reference import TorchBackend
from runtime_py.session import Limits

GOLDENS = Path(__file__).parent / "goldens"
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
METRICS = ("relative_max", "worst_row_cosine", "kl_mean", "kl_max")
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


def observe(name: str, draws: int) -> dict[Key, list[float]]:
    """Every value of every metric of the logits of one golden's shape."""
    folder = GOLDENS / name
    case, checkpoint = read_case(folder), open_checkpoint(folder)
    processor, limits = checkpoint.processor(), Limits(CONTEXT, CONTEXT)
    found: dict[Key, list[float]] = {}
    for draw in range(draws):
        weights = Shuffled(checkpoint.weights, draw)
        exact, others = TorchBackend(checkpoint.spec, weights), sides(checkpoint.spec, weights)
        for prefix in case.prefixes:
            asked = question(case, prefix, processor)
            expected = record(exact, processor, limits, asked, STEPS)
            for way, side in others.items():
                said = record(side, processor, limits, asked, STEPS, expected.fed)
                for row in compare_recordings(expected, said):
                    if row.probe in ("prefill_logits", "step_logits"):
                        for metric in METRICS:
                            found.setdefault((way, row.probe, metric), []).append(row.metrics[metric])
    return found


def lines(name: str, found: dict[Key, list[float]]) -> Iterator[str]:
    """A table row for each way and probe; each cell the worst value and the tail's."""
    for way, probe in dict.fromkeys((way, probe) for way, probe, _ in found):
        cells = []
        for metric in METRICS:
            values = np.array(found[way, probe, metric])
            low = HIGHER_IS_BETTER[metric]
            worst, tail = values.min() if low else values.max(), np.quantile(values, TAIL if low else 1 - TAIL)
            cells.append(f"{worst:.3g} ({tail:.3g})")
        yield f"| {name} | {way} | {probe} | " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table."""
    flags = argparse.ArgumentParser(prog="python -m parity_tests.golden_rounding", description=__doc__.split("\n")[0])
    flags.add_argument("--draws", type=int, default=20, help="random models of each shape (default: %(default)s)")
    flags.add_argument("--case", action="append", choices=CASES, help="a golden; default: all of them")
    given = flags.parse_args()
    sys.stdout.write("| case | rounding | array | " + " | ".join(METRICS) + " |\n" + "|---" * (3 + len(METRICS)) + "|\n")
    for name in given.case or CASES:
        for line in lines(name, observe(name, given.draws)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
