"""A question that eight-bit inputs alone move far: shown on the reference, or a failure.

Kernels that round a layer's input move logits by a few percent, and limits say how many. A trained decoder has tokens that
all later ones attend to, each with a massive activation (Sun et al., arXiv 2402.17762). Where one is switched on by half,
rounding decides how far, and every token behind it moves with it: of twelve photographs one stood so, and PyTorch with
inputs rounded in the same way was moved further than the package (docs/results/rounding.md).

So a question that fails is asked again, of a reference whose decoder rounds its inputs as the package's kernels do, behind
the package's own picture rows. Arrays that break a limit are then held to `MOVED`: what a limit is to allow, a few times
what rounding does in PyTorch alone (`parity_tests.thresholds`), measured for this one question. That holds only where the
package's copy that does not round is exact; what rounding does to the model is told beside it, and held to the floor of
every loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.check.ask import said_by_reference
from parity_tests.check.candidate import Candidate
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import Verdict, all_hold, judge_comparison
from parity_tests.judging.metrics import HIGHER_IS_BETTER
from parity_tests.judging.probes import Question, Recording
from parity_tests.judging.results import ROUNDED_INPUTS, Comparison, Measurement
from parity_tests.judging.standards import Limit, Standard
from parity_tests.reference.checkpoint_side import Checkpoint, stored_reference
from runtime_py.backends.base import Arrays, Backend, DecoderState
from runtime_py.contracts import DECODER
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

ROUNDED = "reference with the stored numbers and rounded inputs"

TINY = 1e-30
"""In place of no distance at all."""


class BehindOwnRows:
    """A reference's decoder behind the other stages of a package."""

    def __init__(self, stages: Backend, decoder: Backend) -> None:
        self.name = decoder.name
        self._stages, self._decoder = stages, decoder

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._stages.run(stage, inputs)

    def start(self, capacity: int) -> DecoderState:
        return self._decoder.start(capacity)

    def forward(self, state: Any, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        return self._decoder.forward(state, inputs, logit_positions)

    def close(self) -> None:
        """Nothing: both are open elsewhere."""


@dataclass(frozen=True)
class RoundedQuestion:
    """One question, and what was said to it.

    Attributes:
        nearest: the reference with the stored numbers.
        inside, said: its answer and the package's.
        fed: int64 (1, steps) answer tokens that every side was fed.
    """

    checkpoint: Checkpoint
    processor: Processor
    nearest: TorchBackend
    package: Candidate
    question: Question
    steps: int
    inside: Recording
    said: Recording
    fed: np.ndarray

    def settled(self, kernels: Comparison, copies: Sequence[Comparison]) -> list[Comparison]:
        """The package's comparison, in parts where rounding is shown to move the arrays that fail, and what rounding does.

        Args:
            copies: of the package's copy that does not round, which have to hold.
        """
        family = self.checkpoint.spec.family
        broken = {
            row.measurement.probe: row for row in judge_comparison(kernels, family).probes if row.verdict is Verdict.FAIL
        }
        shown = all(row.measurement.stage == DECODER and row.broken for row in broken.values())
        if not broken or not shown or not all(all_hold(copy, family) for copy in copies):
            return [kernels]
        rounded = self._rounded()
        if rounded is None:
            return [kernels]
        alone = {row.probe: row for row in compare_recordings(self.inside, rounded)}
        told = replace(kernels, name=ROUNDED_INPUTS, standard=Standard.INT4_LOSS, candidate=ROUNDED)
        told = replace(told, measurements=tuple(alone.values()), seconds=rounded.seconds)
        held = tuple(_held_to(row.measurement, row.broken, alone.get(probe)) for probe, row in broken.items())
        moved = replace(kernels, standard=Standard.MOVED, measurements=held)
        if not all_hold(moved, family):
            return [kernels, told]
        others = tuple(row for row in kernels.measurements if row.probe not in broken)
        return [replace(kernels, measurements=others), moved, told]

    def _rounded(self) -> Recording | None:
        """What the reference says whose decoder rounds; None where nobody knows how the package's kernels round."""
        arithmetic = self.package.examiner.kernel_arithmetic(self.package, self.checkpoint.spec)
        if arithmetic is None:
            return None
        decoder = stored_reference(self.checkpoint, self.package, str(self.nearest.device), arithmetic)
        assert decoder is not None, "a package that rounds has a reference of its own"
        backend = BehindOwnRows(self.package.backend, decoder)
        return said_by_reference(backend, self.package, self.processor, self.question, self.steps, self.fed)


def _held_to(row: Measurement, broken: Sequence[Limit], alone: Measurement | None) -> Measurement:
    """The measurement with how many times as far it is off, in its worst broken metric, as rounding alone is; NaN stays."""
    ratios = [
        _distance(row, limit.metric) / max(_distance(alone, limit.metric), TINY) for limit in broken if alone is not None
    ]
    return replace(row, metrics={**row.metrics, "moved_ratio": float(np.max(ratios)) if ratios else math.inf})


def _distance(row: Measurement, metric: str) -> float:
    value = row.metrics.get(metric, math.nan)
    return 1 - value if HIGHER_IS_BETTER[metric] else value
