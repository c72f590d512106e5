"""MLC packages: libraries that run from mapped weight files, and that show their blocks when compiled with more outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity_tests.backends.examiner import Examiner
from parity_tests.judging.standards import Standard
from runtime_py.backends.base import Arrays, Backend

if TYPE_CHECKING:
    from export.specs import ModelSpec
    from parity_tests.check.candidate import Candidate
    from parity_tests.reference.checkpoint_side import Checkpoint
    from runtime_py.package import Package

WIDE_CODES = ("q4f32_0", "q4f32_1")
"""Precisions with integers whose arithmetic is float32."""


class MlcExaminer(Examiner):
    """Judges MLC packages: standards by precision, and their libraries compiled for this machine."""

    full_precisions = ("fp32", "q0f32")
    rebuilt = True

    def implementation_standard(self, side: Candidate) -> Standard:
        return Standard.STORED_FLOAT32 if side.manifest["precision"] in WIDE_CODES else Standard.STORED_FLOAT16

    def open_in_pieces(self, package: Package, own_code: bool) -> Backend:
        from parity_tests.check.mapped_mlc import MappedMlcBackend

        return MappedMlcBackend(package.folder, package.manifest)

    def held(self, device_bytes: Mapping[str, int]) -> int:
        """Weights and activations twice (measured): TVM copies weights from files it read, and pools what calls took."""
        return sum(device_bytes.values()) + device_bytes["weights"] + device_bytes["activations"]

    def peak(self, spec: ModelSpec, device_bytes: Mapping[str, int], filled: float) -> int:
        from parity_tests.check.mapped_mlc import predicted_peak

        return predicted_peak(device_bytes, filled)

    def block_outputs(self, side: Candidate, stage: str, inputs: Arrays, spec: ModelSpec | None) -> Mapping[str, np.ndarray]:
        if spec is None:
            return {}
        from parity_tests.localize.mlc_blocks import block_outputs

        return block_outputs(side, spec, stage, inputs)

    def other_parameters(self, side: Candidate, checkpoint: Checkpoint) -> Sequence[str]:
        from parity_tests.localize.mlc_files import other_parameters

        return other_parameters(side, checkpoint)

    def built_anew(self, side: Candidate, spec: ModelSpec, library: Path) -> Backend | None:
        from parity_tests.localize.mlc_blocks import built_anew

        return built_anew(side, spec, library)
