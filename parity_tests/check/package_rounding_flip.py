"""Gate logits on the other side of a float16 boundary, in the check of a package; see `parity_tests.golden.rounding_flip`.

A model with hundreds of gate logits has one within float32 noise of a boundary in nearly every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_tests.check.candidate import Candidate
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.rounding_flip import Offsets, offsets_to_reference, with_rounding_flip
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.probes import Question, Recording, record
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import Checkpoint
from parity_tests.reference.reference import TorchBackend


@dataclass(frozen=True)
class Gates:
    """One question and what the reference said to it.

    Attributes:
        reference: the side whose gates are right.
        expected: its recording.
        fed: int64 (1, steps) answer tokens that every side was fed.
    """

    checkpoint: Checkpoint
    reference: TorchBackend
    expected: Recording
    question: Question
    steps: int
    fed: np.ndarray

    def settled(self, comparison: Comparison, side: Candidate) -> list[Comparison]:
        """The comparison of ``side``; in parts where it fails and a rounding flip is shown to be the cause."""
        if not self.checkpoint.spec.decoder.layer_kind.rounded_gates:
            return [comparison]

        def measured(moved: Candidate) -> Sequence[Measurement]:
            said = record(moved.backend, moved.processor, moved.limits, self.question, self.steps, self.fed)
            return compare_recordings(self.expected, said)

        def offsets() -> Offsets | None:
            return offsets_to_reference(AskedOnce(side.played_by(self.reference), self.question), self.checkpoint)

        names = {row.probe for row in comparison.measurements}
        return with_rounding_flip(comparison, "", names, side, offsets, measured, Standard.FLIPPED)
