"""The check at the end of an export, as `export.verification` asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_py.errors import MachineError

if TYPE_CHECKING:
    from export.backends.base import Prediction
    from export.checkpoint.opened import OpenedCheckpoint
    from export.specs import ModelSpec
    from runtime_py.model import Model
    from targets.base import Target

CHECK_ROWS = 2560
"""Image rows of the check's pictures at most; a model that takes more per picture gets them from larger pictures."""

CHECK_TOKENS = 128
"""Text tokens of the check's longest question and answer, generously."""


class PackageVerifier:
    """Compares a finished package with the PyTorch reference: whole in memory where small, in pieces where not.

    The package was made by the export that asks, so its code is trusted.
    """

    def predicted_peak(self, spec: ModelSpec, running: Prediction, target: Target, context: int) -> int:
        """Resident bytes: reference and package in memory, or one streamed and the other in pieces."""
        from parity_tests.backends.registry import examiner_of, stand_in_for
        from parity_tests.reference.checkpoint_side import streams
        from parity_tests.reference.streamed import full_peak, predicted_peak

        if not streams(spec):
            return 2 * full_peak(spec) + sum(running.device_bytes.values())
        tokens = min(spec.image_rows, CHECK_ROWS) + CHECK_TOKENS
        reference = predicted_peak(spec, tokens)
        here = stand_in_for(target.runs, target.backends) or target.runs
        return reference + examiner_of(here).peak(spec, running.device_bytes, filled=min(1.0, tokens / context))

    def check(self, package: Path, checkpoint: OpenedCheckpoint, calibration: Path | None) -> dict[str, Any]:
        """The manifest's ``verification`` block."""
        from parity_tests.check.package_check import CheckOptions, check
        from parity_tests.reference.checkpoint_side import as_reference

        result = check(package, as_reference(checkpoint, calibration), CheckOptions(in_pieces=True, trust=True))
        return {**result.to_json(), "verdict": result.verdict}

    def equal_tokens(self, package: Path, spec: ModelSpec) -> int:
        """Leading tokens of the self-test's answer that the package gives like the reference."""
        from parity_tests.reference.checkpoint_side import streams
        from runtime_py.package import selftest

        sample = selftest.read_sample(package)
        assert sample is not None
        try:
            with _opened(package, in_pieces=streams(spec)) as model:
                return selftest.run(model, sample).equal
        except MachineError:
            return 0


def _opened(folder: Path, in_pieces: bool) -> Model:
    from runtime_py.model import Model, load

    if not in_pieces:
        return load(folder, verify="off", trust=True)
    from parity_tests.check.candidate import open_candidate
    from runtime_py import package, tokenizer

    candidate = open_candidate(folder, in_pieces=True, trust=True)
    return Model(package.read(folder), candidate.backend, candidate.processor, tokenizer.load(folder))
